"""What a version puts into its graph around the pushed file: before it, and after it. As values.

Before: applications send camera frames (bytes, channels last, any size), the file wants numbers of
its own. After: softmax, and the best classes of a row. Computes shapes only; refuses at the push
what could not be folded in a job.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from controller.domain.model import AxisRange, Signature, TensorSpec
from controller.domain.spec import Spec
from controller.errors import InvalidError

NCHW, NHWC = "NCHW", "NHWC"
LAYOUTS = (NCHW, NHWC)
RESIZES = ("bilinear", "nearest")
SENT = ("UINT8", "FP32")  # what applications may send where the file takes floats
FLOATS = ("FP32", "FP16", "FP64")
CLASSES = "_classes"  # ends the name of the output with the places of the best scores
_PICTURE = 4  # axes: batch, channels, height, width
Size = tuple[int | str, int | str]


@dataclass(frozen=True, slots=True)
class InputWish:
    """What is asked for one input; empty and None: as the file has it.

    A value that the file gets is ``(sent - mean) * scale``, by channel.
    """

    name: str
    dtype: str = ""
    layout: str = NCHW
    size: Size | None = None
    resize: str = RESIZES[0]
    mean: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class OutputWish:
    """What is asked for one output; ``top_k`` 0: all of it."""

    name: str
    softmax: bool = False
    top_k: int = 0


@dataclass(frozen=True, slots=True)
class Wishes:
    """All that is asked around one file, and how large dynamic axes may be."""

    inputs: tuple[InputWish, ...] = ()
    outputs: tuple[OutputWish, ...] = ()
    axes: tuple[AxisRange, ...] = ()


@dataclass(frozen=True, slots=True)
class InputStep:
    """From the ``sent`` tensor to the ``core`` one; a step that is empty or None is left out."""

    sent: TensorSpec
    core: TensorSpec
    channels_last: bool = False
    resize_to: tuple[int, int] | None = None  # height, width
    resize: str = RESIZES[0]
    mean: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()

    @property
    def is_plain(self) -> bool:
        """Whether the file gets what was sent, as it is."""
        dressed = self.channels_last or self.resize_to is not None or self.mean or self.scale
        return not dressed and self.sent.dtype == self.core.dtype


@dataclass(frozen=True, slots=True)
class OutputStep:
    """From a ``core`` output to what devices answer."""

    core: TensorSpec
    softmax: bool = False
    top_k: int = 0


@dataclass(frozen=True, slots=True)
class Preparation:
    """The steps for one file, and both signatures: ``core`` is the file's, ``outer`` the
    version's.
    """

    core: Signature
    outer: Signature
    inputs: tuple[InputStep, ...] = field(default=())
    outputs: tuple[OutputStep, ...] = field(default=())

    @property
    def is_empty(self) -> bool:
        """Whether the file's graph stays as it is."""
        plain = all(step.is_plain for step in self.inputs)
        return plain and not any(step.softmax or step.top_k for step in self.outputs)

    def text(self) -> str:
        """For people, empty where nothing is folded: ``image: NHWC UINT8, resized …``."""
        said = [_input_text(step) for step in self.inputs if not step.is_plain]
        said += [_output_text(step) for step in self.outputs if step.softmax or step.top_k]
        return "; ".join(said)


def prepare(core: Signature, wishes: Wishes, where: str = "spec") -> Preparation:
    """The steps around a file of this signature. InvalidError says which wish cannot be met."""
    wanted = {wish.name: wish for wish in wishes.inputs}
    finished = {wish.name: wish for wish in wishes.outputs}
    Spec(wanted, f"{where}.inputs").only(*(spec.name for spec in core.inputs))
    Spec(finished, f"{where}.outputs").only(*(spec.name for spec in core.outputs))
    names = _axis_names(core, wanted, where)
    entering = _renamed(core.inputs, names)
    own = {axis for spec in entering for axis in spec.shape}
    bounds = tuple(one for one in wishes.axes if one.name in own)
    renamed = Signature(entering, _renamed(core.outputs, names), bounds)
    inputs = tuple(
        _input_step(spec, wanted.get(spec.name), f"{where}.inputs.{spec.name}")
        for spec in renamed.inputs
    )
    outputs = tuple(
        _output_step(spec, finished.get(spec.name), f"{where}.outputs.{spec.name}")
        for spec in renamed.outputs
    )
    sent = tuple(step.sent for step in inputs)
    answered = tuple(one for step in outputs for one in _answers(step))
    dynamic = {axis for spec in sent for axis in spec.shape if isinstance(axis, str)}
    Spec({one.name: one for one in wishes.axes}, f"{where}.axes").only(*sorted(dynamic))
    if len({spec.name for spec in answered}) != len(answered):
        raise InvalidError(f"{where}.outputs: two outputs would have one name")
    return Preparation(renamed, Signature(sent, answered, wishes.axes), inputs, outputs)


def class_places(signature: Signature) -> Mapping[int, int]:
    """Of outputs that are the best scores of a row: where the classes that they are of stand."""
    names = [spec.name for spec in signature.outputs]
    return {
        names.index(spec.name.removesuffix(CLASSES)): place
        for place, spec in enumerate(signature.outputs)
        if spec.name.endswith(CLASSES)
        and spec.dtype == "INT64"
        and spec.name.removesuffix(CLASSES) in names
    }


# ---- reading ------------------------------------------------------------------------------------


def parse_wishes(spec: Spec) -> Wishes:
    """Read ``inputs``, ``outputs`` and ``axes`` of a spec; InvalidError names what is wrong."""
    inputs, outputs, axes = (spec.sub(key) for key in ("inputs", "outputs", "axes"))
    return Wishes(
        tuple(_input_wish(inputs.sub(str(name)), str(name)) for name in inputs.body),
        tuple(_output_wish(outputs.sub(str(name)), str(name)) for name in outputs.body),
        tuple(_axis(axes.sub(str(name)), str(name)) for name in axes.body),
    )


def _input_wish(spec: Spec, name: str) -> InputWish:
    spec.only("dtype", "layout", "size", "resize", "mean", "scale", "std")
    if "std" in spec.body and "scale" in spec.body:
        raise InvalidError(
            f"{spec.where} has both std and scale", "a value is (sent - mean) * scale, or / std"
        )
    scale = _numbers(spec, "scale") or tuple(1 / one for one in _numbers(spec, "std"))
    return InputWish(
        name,
        _choice(spec, "dtype", SENT) if "dtype" in spec.body else "",
        _choice(spec, "layout", LAYOUTS) if "layout" in spec.body else NCHW,
        _size(spec),
        _choice(spec, "resize", RESIZES) if "resize" in spec.body else RESIZES[0],
        _numbers(spec, "mean"),
        scale,
    )


def _output_wish(spec: Spec, name: str) -> OutputWish:
    spec.only("softmax", "top_k")
    top_k = spec.whole("top_k", 0) if "top_k" in spec.body else 0
    if "top_k" in spec.body and top_k < 1:
        raise InvalidError(f"{spec.where}.top_k is {top_k}", "leave it out for all of the scores")
    return OutputWish(name, spec.flag("softmax"), top_k)


def _axis(spec: Spec, name: str) -> AxisRange:
    spec.only("least", "most", "typical")
    least, most = spec.whole("least", 1, 1), spec.whole("most", least=1)
    typical = spec.whole("typical", most, 1)
    if not least <= typical <= most:
        raise InvalidError(
            f"{spec.where}: typical {typical} is not between least {least} and most {most}"
        )
    return AxisRange(name, least, most, typical)


def _choice(spec: Spec, key: str, known: Sequence[str]) -> str:
    value = spec.text(key)
    if value not in known:
        raise InvalidError(f"{spec.where}.{key} is {value!r}", f"offered: {', '.join(known)}")
    return value


def _numbers(spec: Spec, key: str) -> tuple[float, ...]:
    value = spec.body.get(key, ())
    items = [value] if isinstance(value, int | float) else value
    if not isinstance(items, list | tuple) or not all(_is_number(one, key) for one in items):
        nonzero = "" if key == "mean" else " other than 0"
        raise InvalidError(
            f"{spec.where}.{key} is {value!r}",
            f"a number{nonzero} is needed, or a list of them, one for each channel",
        )
    return tuple(float(one) for one in items)


def _is_number(value: object, key: str) -> bool:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return plain and math.isfinite(value) and (key == "mean" or value != 0)  # type: ignore[arg-type]


def _size(spec: Spec) -> Size | None:
    value = spec.body.get("size")
    if value is None:
        return None
    whole = isinstance(value, list | tuple) and len(value) == 2
    if not whole or not all(_is_axis(one) for one in value):  # type: ignore[attr-defined]
        raise InvalidError(
            f"{spec.where}.size is {value!r}",
            "height and width are needed, each a number or, where dynamic, a name: [480, 640] or"
            " [height, width]",
        )
    return value[0], value[1]  # type: ignore[index]


def _is_axis(value: object) -> bool:
    named = isinstance(value, str) and value.isidentifier() and value != "batch"
    return named or (isinstance(value, int) and not isinstance(value, bool) and value > 0)


# ---- steps --------------------------------------------------------------------------------------


def _axis_names(
    core: Signature, wanted: Mapping[str, InputWish], where: str
) -> dict[str, int | str]:
    """What dynamic axes of the file are called, or fixed to, by the sizes that were asked for."""
    names: dict[str, int | str] = {}
    for spec in core.inputs:
        wish = wanted.get(spec.name)
        if wish is None or wish.size is None or len(spec.shape) != _PICTURE:
            continue
        for axis, asked in zip(spec.shape[2:], wish.size, strict=True):
            if isinstance(axis, str) and names.setdefault(axis, asked) != asked:
                raise InvalidError(
                    f"{where}.inputs.{spec.name}.size gives {asked} to an axis that is"
                    f" {names[axis]} elsewhere"
                )
    return names


def _renamed(
    specs: tuple[TensorSpec, ...], names: Mapping[str, int | str]
) -> tuple[TensorSpec, ...]:
    def axis(one: int | str) -> int | str:
        return names.get(one, one) if isinstance(one, str) else one

    return tuple(
        TensorSpec(spec.name, spec.dtype, tuple(axis(one) for one in spec.shape)) for spec in specs
    )


def _input_step(core: TensorSpec, wish: InputWish | None, where: str) -> InputStep:
    if wish is None:
        return InputStep(core, core)
    dtype = wish.dtype or core.dtype
    pictured = wish.layout != NCHW or wish.size is not None or len(wish.mean + wish.scale) > 0
    if pictured and (len(core.shape) != _PICTURE or not isinstance(core.shape[1], int)):
        raise InvalidError(
            f"{where}: the file takes {core.text()}",
            "layout, size, mean and scale are for pictures: batch, channels, height, width",
        )
    changes = dtype != core.dtype or wish.mean or wish.scale
    if (changes or wish.size is not None) and core.dtype not in FLOATS:
        raise InvalidError(f"{where}: the file takes {core.text()}, which is no float")
    if not pictured:
        return InputStep(TensorSpec(core.name, dtype, core.shape), core)
    batch, channels, *own = core.shape
    for key, values in (("mean", wish.mean), ("scale", wish.scale)):
        if len(values) not in (0, 1, channels):
            raise InvalidError(
                f"{where}.{key} has {len(values)} numbers, the file takes {channels} channels"
            )
    height, width = wish.size or (own[0], own[1])
    resize_to = None if [height, width] == own else _resize_to(core, where)
    shape = (batch, channels, height, width)
    if wish.layout == NHWC:
        shape = (batch, height, width, channels)
    sent = TensorSpec(core.name, dtype, shape)
    return InputStep(sent, core, wish.layout == NHWC, resize_to, wish.resize, wish.mean, wish.scale)


def _resize_to(core: TensorSpec, where: str) -> tuple[int, int]:
    height, width = core.shape[2:]
    if not isinstance(height, int) or not isinstance(width, int):
        raise InvalidError(
            f"{where}.size: the file takes {core.text()}, so nothing says what to resize to",
            "give both axes a name, or both a number",
        )
    return height, width


def _output_step(core: TensorSpec, wish: OutputWish | None, where: str) -> OutputStep:
    if wish is None:
        return OutputStep(core)
    last = core.shape[-1] if core.shape else None
    if (wish.softmax or wish.top_k) and (core.dtype not in FLOATS or not isinstance(last, int)):
        raise InvalidError(
            f"{where}: the file gives {core.text()}",
            "softmax and top_k are for scores: floats whose last axis is the classes",
        )
    if isinstance(last, int) and wish.top_k > last:
        raise InvalidError(f"{where}.top_k is {wish.top_k}, the file has {last} classes")
    return OutputStep(core, wish.softmax, wish.top_k)


def _answers(step: OutputStep) -> tuple[TensorSpec, ...]:
    core = step.core
    if not step.top_k:
        return (core,)
    shape = (*core.shape[:-1], step.top_k)
    return (
        TensorSpec(core.name, core.dtype, shape),
        TensorSpec(core.name + CLASSES, "INT64", shape),
    )


def _input_text(step: InputStep) -> str:
    layout = f"{NHWC} " if step.channels_last else ""
    said = [f"{step.sent.name}: {layout}{step.sent.dtype}"]
    if step.resize_to is not None:
        said.append(f"resized to {step.resize_to[0]} x {step.resize_to[1]} ({step.resize})")
    if step.mean or step.scale:
        said.append("normalised")
    return ", ".join(said)


def _output_text(step: OutputStep) -> str:
    said = ["softmax"] if step.softmax else []
    said += [f"best {step.top_k} classes"] if step.top_k else []
    return f"{step.core.name}: {', '.join(said)}"
