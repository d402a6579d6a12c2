"""Check the signature of a bundle's files with a public key, by OpenSSF model-signing.

Request: {name, digests, signature, key}. `digests` maps each file's name to its SHA-256;
`signature` is the text of the signature file, `key` a PEM file with the public key. Response:
{bad: null | str}: null where the key made this signature of exactly these files, else why not, as
the end of a sentence about the signature.

Nothing leaves the machine: with a key the library asks no server.
"""

import hashlib
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _protocol import WorkerError, run
from _signed_files import KnownDigests
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from model_signing import verifying

CURVES = ("secp256r1", "secp384r1", "secp521r1")
MAX_REASON = 300


def main(request):
    named = check_key(Path(request["key"]))
    config = verifying.Config().use_elliptic_key_verifier(public_key=request["key"])
    config.set_hashing_config(KnownDigests(request["name"], request["digests"]))
    with tempfile.TemporaryDirectory() as folder:
        signature = Path(folder) / "model.sig"
        signature.write_text(request["signature"], encoding="utf-8")
        try:
            material = json.loads(request["signature"])["verificationMaterial"]
            if material["publicKey"]["hint"] != named:
                return {"bad": f"was made with another key than this one, {named[:16]}…"}
            config.verify(folder, signature)
        except InvalidSignature:
            return {"bad": "was not made by this key, or was changed"}
        except Exception as error:
            # Whatever a forged file makes the library say, it is a refusal.
            return {"bad": f"is refused: {type(error).__name__}: {error}"[:MAX_REASON]}
    return {"bad": None}


def check_key(path):
    """The SHA-256 of a public key's PEM text, by which signatures name it; WorkerError for none."""
    hint = "It is made of the private one: openssl pkey -in private.pem -pubout -out public.pem"
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise WorkerError(f"the key {path} cannot be read: {error.strerror}") from error
    except Exception as error:
        raise WorkerError(f"{path} is no public key in PEM form", hint) from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in CURVES:
        raise WorkerError(f"{path} is no elliptic-curve key on P-256, P-384 or P-521", hint)
    text = key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(text).hexdigest()


if __name__ == "__main__":
    run(main)
