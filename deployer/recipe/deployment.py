"""A deployment: several bundles behind one gateway, and who gets which requests.

`deployer serve deployment.yaml` runs one. It is a YAML file like a recipe, as strict, with every
problem told by its line; recipes/deployments/ holds some to start from.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from deployer.errors import Problem, RecipeError
from deployer.recipe.document import HINTS, MAX_BYTES, Document, dotted, parse, validate
from deployer.recipe.overrides import assign, split_override
from deployer.recipe.section import Millis, Positive, Section, Text
from deployer.recipe.serve import Serve

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=32)]
Seconds = Annotated[float, Field(gt=0.0, le=86_400.0, allow_inf_nan=False)]
HostName = Annotated[
    str, Field(pattern=r"^[0-9A-Za-z_]([0-9A-Za-z_.-]*[0-9A-Za-z_-])?$", max_length=253)
]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
LONGEST = 56
"""Characters of a deployment's and a server's name together: they make the name of a process."""
CHOSEN = ("host", "port", "api_key_file")
"""Fields of `serve` that a deployment sets itself: its servers listen on the loopback."""
_SERVERS = re.compile(r"^servers[ \t]*:", re.MULTILINE)


class Gateway(Section):
    """Where clients reach the deployment, and what it bears."""

    host: Annotated[str, Field(pattern=r"^[0-9A-Za-z:][0-9A-Za-z.:-]*$", max_length=253)] = Field(
        "127.0.0.1", description="Address to listen on; other than loopback needs keys."
    )
    hosts: Annotated[tuple[HostName, ...], Field(max_length=64)] = Field(
        (),
        description="Names beside localhost that clients without a key may reach it by.",
    )
    port: Annotated[int, Field(ge=0, le=65535)] = Field(
        8000, description="TCP port; 0 takes a free one."
    )
    keys: Text | None = Field(
        None,
        description="File of hashed API keys (`deployer key add`); read again on change.",
    )
    certificate: Text | None = Field(
        None, description="PEM file with the certificate chain for TLS; read again on change."
    )
    private_key: Text | None = Field(None, description="PEM file with the certificate's key.")
    max_request_kib: Annotated[int, Field(ge=1, le=1_048_576)] = Field(
        1024, description="Largest body of a request, KiB; a larger one is answered with 413."
    )
    max_waiting: Annotated[int, Field(ge=0, le=100_000)] = Field(
        64, description="Requests that may wait for a slot; further ones are answered with 429."
    )
    max_wait: Seconds = Field(
        30.0, description="Seconds a request may wait for a slot before it is answered with 429."
    )
    request_timeout: Seconds = Field(
        600.0,
        description="Seconds without a byte from a server until its answer is given up.",
    )
    drain_timeout: Annotated[int, Field(ge=0, le=86_400)] = Field(
        60, description="Seconds that running requests get to finish when the deployment stops."
    )
    traces: Annotated[str, Field(pattern=r"^https?://[^\s]+$", max_length=512)] | None = Field(
        None,
        description="OTLP/HTTP endpoint for OpenTelemetry traces; needs deployer[traces].",
    )

    @model_validator(mode="after")
    def _both_of_tls(self) -> Gateway:
        if (self.certificate is None) != (self.private_key is None):
            raise ValueError("certificate and private_key belong together: give both or neither")
        return self


class DeployedServer(Section):
    """One server of a deployment: a bundle, or a recipe that is built first."""

    bundle: Text | None = Field(
        None,
        description="Name of a bundle, or its folder: what holds a / is relative to this file.",
    )
    recipe: Text | None = Field(None, description="File of a recipe; relative to this file.")
    serve: Serve = Field(
        default_factory=Serve,
        description="Fields of the recipe's serve section that differ here; host, port and "
        "api_key_file are the deployment's own affair.",
    )

    @model_validator(mode="after")
    def _one_source(self) -> DeployedServer:
        if (self.bundle is None) == (self.recipe is None):
            raise ValueError("give one of bundle and recipe")
        taken = self.serve.model_fields_set.intersection(CHOSEN)
        if taken:
            raise ValueError(
                f"serve.{min(taken)} is chosen by the deployment; clients reach gateway.host and "
                "gateway.port"
            )
        return self

    def overrides(self) -> dict[str, Any]:
        """The fields of `serve` that are given here, by their dotted names."""
        return dict(_leaves(self.serve.model_dump(mode="json", exclude_unset=True), "serve"))


class Shadow(Section):
    """A server that gets copies of some requests; its answers are measured and thrown away."""

    server: Name = Field(description="Name of the server.")
    share: Fraction = Field(description="Share of the requests that is copied.")


class ServedObjectives(Section):
    """What a route's servers must keep over the last `window` seconds; else the fallback serves."""

    ttft_p95_ms: Millis | None = Field(None, description="Limit of the time to first token.")
    tpot_p95_ms: Millis | None = Field(None, description="Limit of the time per output token.")
    max_error_rate: Fraction | None = Field(None, description="Limit of failed / all requests.")
    window: Seconds = Field(60.0, description="Seconds that are looked back.")
    min_requests: Positive = Field(
        20, description="Requests in the window below which nothing is judged."
    )


class Question(Section):
    """A question with a known answer."""

    ask: Text = Field(description="What the model is asked, as the user.")
    expect: Text = Field(
        description="Regular expression that its answer must contain, whatever the case of letters."
    )

    @field_validator("expect")
    @classmethod
    def _an_expression(cls, value: str) -> str:
        try:
            with warnings.catch_warnings():  # what may mean two things, like [[a]
                warnings.simplefilter("error")
                re.compile(value)
        except (re.error, Warning) as error:
            raise ValueError(f"is no regular expression: {error}") from error
        return value


class QualityProbe(Section):
    """Questions a running server is asked again and again; wrong answers bring the fallback."""

    every: Seconds = Field(60.0, description="Seconds between two rounds of questions.")
    questions: Annotated[tuple[Question, ...], Field(max_length=64)] = Field(
        description="What is asked in a round."
    )
    at_least: Fraction = Field(1.0, description="Share of a round that must be answered rightly.")
    max_tokens: Annotated[int, Field(ge=1, le=1024)] = Field(32, description="Tokens of an answer.")

    @model_validator(mode="after")
    def _something_is_asked(self) -> QualityProbe:
        if not self.questions:
            raise ValueError("questions: at least one is needed")
        return self


class Route(Section):
    """A model name that clients ask for, and the servers that answer for it."""

    model: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w./:-]*$", max_length=128)] = Field(
        description="Name that clients give as `model`."
    )
    to: dict[Name, Annotated[float, Field(ge=0.0, le=1e6)]] = Field(
        description="Server: weight. A canary has a small weight; 0 gives it nothing yet."
    )
    sticky: Literal["none", "session", "key"] = Field(
        "none",
        description="Whether requests with the same session (header x-session-id, else the field "
        "user), or of the same API key, stay with one server.",
    )
    shadow: Shadow | None = Field(None, description="Copies of requests for another server.")
    fallback: Name | None = Field(
        None,
        description="Server that answers while those of `to` are ill or miss their aims.",
    )
    objectives: ServedObjectives = Field(default_factory=ServedObjectives)
    quality: QualityProbe | None = Field(None, description="Live check of the answers.")
    recover_after: Seconds = Field(
        30.0, description="Seconds a server must pass its probes before it gets requests again."
    )

    @model_validator(mode="after")
    def _somebody_answers(self) -> Route:
        if not any(self.to.values()):
            raise ValueError("to: at least one weight must be above 0")
        if self.fallback in self.to:
            raise ValueError("fallback is one of the servers of to")
        return self


class Deployment(Section):
    """Servers, and one gateway in front of them."""

    version: Literal[1] = Field(description="Version of the deployment format.")
    name: Name = Field(description="Name of the deployment.")
    gateway: Gateway = Field(default_factory=Gateway)
    servers: Annotated[dict[Name, DeployedServer], Field(max_length=64)] = Field(
        description="The servers by name."
    )
    routes: Annotated[tuple[Route, ...], Field(max_length=64)] = Field(
        description="The models clients may ask for."
    )

    @model_validator(mode="after")
    def _routes_lead_somewhere(self) -> Deployment:
        # Not by a least length of the field: that is told, too, where an item has a mistake.
        if not self.routes:
            raise ValueError("routes: at least one is needed")
        for route in self.routes:
            named = [*route.to, route.fallback, route.shadow.server if route.shadow else None]
            for server in named:
                if server is not None and server not in self.servers:
                    raise ValueError(f"routes: {route.model} names {server}, which is no server")
        for server in self.servers:
            if len(self.name) + len(server) > LONGEST:
                raise ValueError(
                    f"name: with that of server {server} it has more than {LONGEST} characters"
                )
        models = [route.model for route in self.routes]
        twice = {model for model in models if models.count(model) > 1}
        if twice:
            raise ValueError(f"routes: {min(twice)} stands twice")
        return self


def read_deployment(
    path: Path, overrides: Sequence[str] = (), name: str | None = None
) -> Deployment:
    """Read a deployment's file, apply `a.b=value` overrides, and name it `name` if that is given.

    Paths in the file are relative to its folder, paths in overrides to the working directory;
    the result holds absolute ones. Raises RecipeError with every problem, UsageError for an
    override without "=".
    """
    document = parse(path, "deployment")
    _locate(document.data, path.resolve().parent)
    return _finish(document, overrides, name, path)


def deployment_around(
    server: Mapping[str, Any], model: str, name: str, overrides: Sequence[str]
) -> Deployment:
    """The deployment of one server, `main`, that answers for `model`; raises as the file's reader.

    `overrides` are of `gateway` and `serve`; the latter are the server's.
    """
    data = {
        "version": 1, "name": name, "servers": {"main": dict(server)},
        "routes": [{"model": model, "to": {"main": 1.0}}],
    }  # fmt: skip
    moved = [f"servers.main.{each}" if each.startswith("serve.") else each for each in overrides]
    return _finish(Document(data), moved, None, "the deployment around it")


def is_deployment(path: Path) -> bool:
    """Whether a YAML file is meant as a deployment: it has servers, which a recipe has not.

    A file that is not valid YAML is judged by its text, so that its own reader tells what is wrong.
    """
    try:
        data = parse(path, "deployment").data
    except RecipeError:
        with path.open("rb") as stream:
            text = stream.read(MAX_BYTES).decode("utf-8", "replace")
        return _SERVERS.search(text) is not None
    return "servers" in data


def _finish(
    document: Document, overrides: Sequence[str], name: str | None, where: Path | str
) -> Deployment:
    for override in overrides:
        assign(document, *split_override(override))
    if name is not None:
        assign(document, ("name",), name)
    _locate(document.data, Path.cwd())  # what is absolute stays as it is
    found = validate(document, Deployment)
    if found is not None and found.gateway.keys is None:
        _refuse_sticky_keys(found, document)
    if found is None or document.problems:
        raise RecipeError(where, document.sorted_problems, HINTS["deployment"])
    return found


def _refuse_sticky_keys(deployment: Deployment, document: Document) -> None:
    """Without keys all requests have the same one, and would all stay with the same server."""
    for number, route in enumerate(deployment.routes):
        if route.sticky == "key":
            field = ("routes", number, "sticky")
            message = "key needs gateway.keys: without keys one server would get all requests"
            document.problems.append(Problem(dotted(field), message, document.line(field)))


def _locate(data: Any, base: Path) -> None:
    """Make the paths of a document absolute; what has the wrong type is left for the models."""
    _locate_in(_section(data, "gateway"), ("keys", "certificate", "private_key"), base)
    for server in _section(data, "servers").values():
        if not isinstance(server, dict):
            continue
        _locate_in(server, ("recipe",), base)
        if "/" in str(server.get("bundle")):
            _locate_in(server, ("bundle",), base)
        adapters = _section(_section(server, "serve"), "vllm").get("lora")
        for adapter in adapters if isinstance(adapters, list) else ():
            _locate_in(adapter, ("path",), base)


def _section(data: Any, name: str) -> dict[str, Any]:
    found = data.get(name) if isinstance(data, dict) else None
    return found if isinstance(found, dict) else {}


def _locate_in(section: Any, names: Sequence[str], base: Path) -> None:
    for name in names:
        value = section.get(name) if isinstance(section, dict) else None
        if isinstance(value, str) and value and "\x00" not in value:
            section[name] = str(base / value)


def _leaves(values: Mapping[str, Any], at: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        here = f"{at}.{name}"
        found += _leaves(value, here) if isinstance(value, dict) else [(here, value)]
    return found
