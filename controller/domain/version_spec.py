"""What is pushed beside a version's files, read from YAML: what they do not say of themselves.

Signatures of files that state none, the function that makes a network, and what goes around the
graph (`preparation`). Refuses keys that nobody reads, and variants that are not pushed.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from controller.domain.model import Signature
from controller.domain.preparation import Wishes, parse_wishes
from controller.domain.spec import Spec
from controller.errors import InvalidError

WHERE = "spec"
_BOTH = ("signature", "inputs", "entry")  # for all variants, or for one
_ENTRY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*")
MAX_ENTRY = 200


@dataclass(frozen=True, slots=True)
class VariantSpec:
    """What holds for one variant."""

    wishes: Wishes = field(default_factory=Wishes)
    signature: Signature | None = None  # as declared; None: the file has to say it
    entry: str = ""  # module:function; empty: the file is the whole model
    body: Mapping[str, Any] | None = None  # what jobs are sent; None: nothing was asked


def variant_spec(body: Mapping[str, Any], variant: str, variants: Sequence[str]) -> VariantSpec:
    """Read what a version's spec says of one variant. InvalidError names the key that is wrong.

    What stands under ``variants`` replaces, key by key, what stands for all.
    """
    spec = Spec(body, WHERE).only(*_BOTH, "outputs", "axes", "variants")
    own = spec.sub("variants").only(*variants).sub(variant).only(*_BOTH)
    merged: dict[str, Any] = {key: body[key] for key in (*_BOTH, "outputs", "axes") if key in body}
    merged |= {key: value for key, value in own.body.items() if key != "inputs"}
    if "inputs" in own.body:
        merged["inputs"] = _merged(spec.sub("inputs"), own.sub("inputs"))
    return parse_variant(merged)


def parse_variant(body: Mapping[str, Any]) -> VariantSpec:
    """Read what a job is sent of one variant: :func:`variant_spec` made it."""
    spec = Spec(body, WHERE).only(*_BOTH, "outputs", "axes")
    entry = spec.text("entry", "")
    if entry and (len(entry) > MAX_ENTRY or not _ENTRY.fullmatch(entry)):
        raise InvalidError(f"{WHERE}.entry is {entry[:80]!r}", "write module:function")
    return VariantSpec(
        parse_wishes(spec),
        _signature(spec) if "signature" in body else None,
        entry,
        dict(body) or None,
    )


def _merged(shared: Spec, own: Spec) -> dict[str, Any]:
    names = dict.fromkeys([*shared.body, *own.body])
    return {name: {**shared.sub(str(name)).body, **own.sub(str(name)).body} for name in names}


def _signature(spec: Spec) -> Signature:
    declared = spec.sub("signature").only("inputs", "outputs")
    for side in ("inputs", "outputs"):
        items = declared.body.get(side)
        for place, item in enumerate(items if isinstance(items, list | tuple) else ()):
            Spec({side: item}, declared.where).sub(side).only("name", "dtype", "shape")
            if not item.get("name"):
                raise InvalidError(f"{declared.where}.{side}[{place}] has no name")
    return Signature.from_json(declared.body)
