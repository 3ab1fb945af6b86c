"""What we call of torch, triton and transformers where a CUDA device is, and their signatures.

    python tests/cuda/signatures.py PACKAGE=WHEEL_OR_FOLDER ...

reads the signatures from the sources in a wheel, or in a folder where one is unpacked, without
importing anything, and keeps them in signatures.json beside this file:

    pip download --no-deps torch==2.11.0 --only-binary=:all: --platform macosx_11_0_arm64 \
        --python-version 3.12          # any platform's wheel has the same Python and operators
    python tests/cuda/signatures.py torch=torch-2.11.0-....whl triton=... transformers=...
"""

import ast
import inspect
import json
import re
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

DATA = Path(__file__).with_name("signatures.json")
OPERATORS = "torchgen/packaged/ATen/native/native_functions.yaml"


@dataclass(frozen=True, slots=True)
class Call:
    """How we call a function: `positional` arguments, then these by name.

    `name` is where the function is defined, or `aten::operator.overload`. Where `only_if` names
    parameters, we look first and call a function without them in another way, or not at all.
    """

    name: str
    positional: int = 0
    named: tuple[str, ...] = ()
    only_if: tuple[str, ...] = ()


def method(name: str, positional: int = 0, *named: str) -> Call:
    """A call on an object or a class, which is an argument too."""
    return Call(name, positional + 1, named)


VARLEN = "torch.nn.attention.varlen.varlen_attn"
PAGED = ("enable_gqa", "seqused_k", "block_table")
CALLS = (
    # azr.model.attention
    Call(VARLEN, 7, ("scale", "window_size")),
    Call(VARLEN, 7, ("scale", "window_size", "enable_gqa"), ("enable_gqa",)),
    Call(VARLEN, 7, ("scale", *PAGED), PAGED),
    Call("aten::_flash_attention_forward", 10, ("scale", "seqused_k"), ("seqused_k",)),
    Call("aten::scaled_dot_product_attention", 3, ("is_causal", "scale", "dropout_p")),
    Call("aten::_scaled_dot_product_flash_attention_for_cpu", 3, ("attn_mask", "scale")),
    Call("torch.nn.functional.embedding", 2),
    method("transformers.utils.generic.GeneralInterface.register", 2),
    method("transformers.modeling_utils.PreTrainedModel.set_attn_implementation", 1),
    *(
        method(
            f"transformers.models.{family}.modeling_{family}.{cls}Model.forward", 0,
            "input_ids", "position_ids", "attention_mask", "use_cache", "attend",
        )
        for family, cls in (("qwen2", "Qwen2"), ("qwen3", "Qwen3"), ("llama", "Llama"))
    ),
    # azr.model
    Call("torch.utils.checkpoint.checkpoint", 2, ("use_reentrant", "preserve_rng_state")),
    method("transformers.modeling_utils.PreTrainedModel.from_pretrained", 1,
           "dtype", "output_loading_info"),
    method("transformers.modeling_utils.PreTrainedModel.save_pretrained", 1, "state_dict"),
    method("transformers.models.auto.auto_factory._BaseAutoModelClass.from_config", 1),
    Call("transformers.models.auto.tokenization_auto.get_tokenizer_config", 1),
    # azr.model.fused
    Call("torch.nn.modules.module._has_any_global_hook"),
    Call("torch.utils._python_dispatch.is_traceable_wrapper_subclass", 1),
    *(
        method(f"transformers.models.{family}.modeling_{family}.{cls}{part}.forward", 1, *named)
        for family, cls in (("qwen2", "Qwen2"), ("qwen3", "Qwen3"), ("llama", "Llama"))
        for part, named in (
            ("DecoderLayer", ("attention_mask", "position_embeddings", "attend")),
            ("Attention", ("position_embeddings", "attention_mask", "past_key_values", "attend")),
            ("MLP", ()),
            ("RMSNorm", ()),
        )
    ),
    # azr.rollout
    Call("aten::mm.dtype", 3),
    method("torch.cuda.graphs.graph.__init__", 1, "pool", "capture_error_mode"),
    Call("torch.cuda.graphs.graph_pool_handle"),
    method("torch.cuda.graphs.CUDAGraph.__new__"),
    method("torch.cuda.graphs.CUDAGraph.replay"),
    method("torch.cuda.streams.Event.__new__", 0, "enable_timing"),
    method("torch.cuda.streams.Event.record"),
    method("torch.cuda.streams.Event.elapsed_time", 1),
    method("torch.cuda.streams.Stream.__new__"),
    method("torch.cuda.streams.Stream.wait_stream", 1),
    Call("torch.cuda.stream", 1),
    Call("torch.cuda.current_stream"),
    Call("torch.cuda.memory.empty_cache"),
    Call("torch.cuda.memory.mem_get_info"),
    Call("torch.cuda.memory.memory_allocated", 1),
    Call("torch.cuda.memory.memory_reserved", 1),
    # azr.learner, azr.learner.optim, azr.resume
    method("torch.optim.adamw.AdamW.__init__", 1, "lr", "betas", "weight_decay", "fused"),
    Call("torch.nn.utils.clip_grad.clip_grad_norm_", 2),
    Call("aten::_foreach_copy_", 2),
    Call("torch.cuda.random.get_rng_state"),
    Call("torch.cuda.random.set_rng_state", 1),
    # azr.doctor, azr.run.machine, azr.train
    *(Call(f"torch.cuda.{name}") for name in ("is_available", "device_count", "current_device")),
    *(
        Call(f"torch.cuda.get_device_{name}", 1)
        for name in ("name", "capability", "properties")
    ),
    # rlvr_kernels
    Call("torch._library.custom_ops.custom_op", 1, ("mutates_args",)),
    method("torch._library.custom_ops.CustomOpDef.register_fake", 1),
    method("torch._library.custom_ops.CustomOpDef.register_autograd", 1, "setup_context"),
    Call("torch.compiler.is_compiling"),
    Call("aten::addmm.dtype_out", 4, ("out",)),
    method("triton.runtime.jit.JITFunction.run", 9, "grid", "warmup", "num_warps", "num_stages"),
    Call("triton.runtime.jit.jit", 0, ("do_not_specialize",)),
    Call("triton.compiler.compiler.compile", 1, ("target", "options")),
    method("triton.compiler.compiler.ASTSource.__init__", 0,
           "fn", "signature", "constexprs", "attrs"),
    Call("triton.backends.compiler.GPUTarget", 3),
    Call("triton.language.core.load", 1, ("mask", "other")),
    Call("triton.language.core.store", 2, ("mask",)),
    Call("triton.language.core.dot", 3, ("input_precision",)),
    Call("triton.language.core.arange", 2),
    Call("triton.language.core.full", 3),
    Call("triton.language.core.where", 3),
    Call("triton.language.core.program_id", 1),
    Call("triton.language.core.num_programs", 1),
    method("triton.language.core.range.__init__", 3, "num_stages"),
    Call("triton.language.standard.zeros", 2),
    Call("triton.language.standard.sum", 2),
    Call("triton.language.standard.max", 2),
    Call("triton.language.standard.min", 2),
)  # fmt: skip


class Source:
    """The files of a package: a wheel, or a folder that packages lie in."""

    def __init__(self, path: Path):
        self.path = path
        self._zip = zipfile.ZipFile(path) if path.is_file() else None

    def read(self, name: str) -> str | None:
        """Returns a file's text, None where it is not there."""
        try:
            if self._zip:
                return self._zip.read(name).decode()
            return (self.path / name).read_text(encoding="utf-8")
        except (KeyError, OSError):
            return None

    def version(self, package: str) -> str:
        """Returns the package's version, without the build that it is."""
        if self._zip:
            return self.path.name.split("-")[1].split("+")[0]
        folders = self.path.glob(f"{package}-*.dist-info")
        return next(folders).name.split("-")[1].removesuffix(".dist").split("+")[0]

    def signature(self, name: str) -> str | None:
        """Returns the parameters of a function as Python source; None where it is not there.

        Defaults read `...`: whether there is one is all that a call depends on.
        """
        if name.startswith("aten::"):
            return self._operators().get(name.removeprefix("aten::"))
        parts = name.split(".")
        for count in range(len(parts) - 1, 0, -1):
            for file in ("/".join(parts[:count]) + ".py", "/".join(parts[:count]) + "/__init__.py"):
                if text := self.read(file):
                    node = _find(ast.parse(text), parts[count:])
                    return None if node is None else _parameters(node)
        return None

    @cache  # noqa: B019 - a script's few sources
    def _operators(self) -> dict[str, str]:
        text = self.read(OPERATORS) or ""
        found = re.findall(r"^- func: ([\w.]+)\((.*)\) -> ", text, re.MULTILINE)
        return {name: ", ".join(_schema_parameters(schema)) for name, schema in found}


def _find(node: ast.AST, names: list[str]) -> ast.AST | None:
    """The last definition of a name counts: earlier ones are overloads for type checkers."""
    for name in names:
        node = next((n for n in reversed(list(_defined(node))) if n.name == name), None)
        if node is None:
            return None
    return node


def _defined(node: ast.AST) -> Iterator[ast.AST]:
    """What a module or a class defines itself, also under a condition."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            yield child
        elif isinstance(child, ast.If | ast.Try):
            yield from _defined(child)


def _parameters(node: ast.AST) -> str:
    if isinstance(node, ast.ClassDef):  # a dataclass or a named tuple: its fields
        fields = [f for f in node.body if isinstance(f, ast.AnnAssign)]
        return ", ".join(f.target.id + ("=..." if f.value else "") for f in fields)
    args = node.args
    for arg in (*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg):
        if arg is not None:
            arg.annotation = None
    args.defaults = [ast.Constant(...) for _ in args.defaults]
    args.kw_defaults = [d if d is None else ast.Constant(...) for d in args.kw_defaults]
    return ast.unparse(args)


def _schema_parameters(schema: str) -> Iterator[str]:
    for part in re.split(r", (?![^(\[]*[)\]])", schema):
        name, default, _ = part.split(" ")[-1].partition("=")
        name = "input" if name == "self" else name
        yield name if name == "*" else name + ("=..." if default else "")


def bind(signature: str, call: Call) -> None:
    """Raises TypeError where the call does not fit."""
    function = ast.parse(f"def f({signature}): pass").body[0]
    args, kinds = function.args, inspect.Parameter
    positional = [*args.posonlyargs, *args.args]
    required = len(positional) - len(args.defaults)
    parameters = [
        kinds(a.arg, kinds.POSITIONAL_ONLY if i < len(args.posonlyargs)
              else kinds.POSITIONAL_OR_KEYWORD, default=kinds.empty if i < required else ...)
        for i, a in enumerate(positional)
    ]  # fmt: skip
    if args.vararg:
        parameters.append(kinds(args.vararg.arg, kinds.VAR_POSITIONAL))
    for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        empty = kinds.empty if default is None else ...
        parameters.append(kinds(arg.arg, kinds.KEYWORD_ONLY, default=empty))
    if args.kwarg:
        parameters.append(kinds(args.kwarg.arg, kinds.VAR_KEYWORD))
    inspect.Signature(parameters).bind(*[None] * call.positional, **dict.fromkeys(call.named))


def read(package: str, source: Source) -> dict[str, str]:
    """Returns the signatures of all that we call of a package, those that are there."""
    prefixes = (f"{package}.", "aten::") if package == "torch" else (f"{package}.",)
    names = {call.name for call in CALLS if call.name.startswith(prefixes)}
    found = {name: source.signature(name) for name in sorted(names)}
    return {name: text for name, text in found.items() if text is not None}


def main(arguments: list[str]) -> None:
    """Adds the given versions to the data file, or replaces them."""
    data = json.loads(DATA.read_text()) if DATA.exists() else {}
    for argument in arguments:
        package, _, path = argument.partition("=")
        source = Source(Path(path))
        data.setdefault(package, {})[source.version(package)] = read(package, source)
    DATA.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
