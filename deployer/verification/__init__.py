"""Check a bundle before anything opens it; `checking` puts the checks in their order."""

from deployer.verification.checking import Authentic, Check, Checked, SignatureFound
from deployer.verification.examined import Examined

__all__ = ["Authentic", "Check", "Checked", "Examined", "SignatureFound"]
