"""One TorchScript module: opening it, matching its arguments and results to config.pbtxt, running it.

Apart from model.py because importing torch takes seconds, which Triton's separate process for
auto_complete_config need not spend on a complete config.pbtxt.
"""

import contextlib
import re
import sys
import zipfile
from pathlib import Path

import edge_backend as edge
import numpy as np
import torch
import triton_python_backend_utils as pb_utils

TORCHVISION = "torchvision::"
WARM_UP_CALLS = 3  # with profiling on, the second call specialises; a third shows that the module has settled
NAMED_INDEX = re.compile(r".+?__(\d+)")


def open_module(path, device):
    """The module in evaluation mode, or a load error that says what is wrong with the file."""
    try:
        module = load_module(path, device)
    except (RuntimeError, ValueError, EOFError) as error:
        reason = str(error).strip().splitlines()[0]
        edge.fail(f"torch {torch.__version__} cannot read the model: {reason}", path, advice(path, reason))
    return module.eval()


def load_module(path, device):
    """The module; with torchvision's operators, as in NVIDIA's backend, where it asks for them (NMS inside)."""
    try:
        return torch.jit.load(str(path), map_location=device)
    except RuntimeError as error:
        if TORCHVISION not in str(error):
            raise
    # The stub searches its working folder too; in a checkout of this project that has a folder `triton`, which
    # torch takes for the compiler of that name.
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path.cwd()]
    with contextlib.suppress(ImportError):
        import torchvision  # noqa: F401 - importing it registers them; it takes a second, so only where needed
    return torch.jit.load(str(path), map_location=device)


def advice(path, reason):
    """How to fix a file that torch.jit.load refuses, by its reason and by what the file looks like."""
    if TORCHVISION in reason:
        return (
            "install torchvision in the version that fits this torch (pip install torchvision), or export the model "
            "without NMS: the gateway does it"
        )
    if not zipfile.is_zipfile(path):
        return "it is no complete TorchScript archive; copy it again and compare its sha256 with the original"
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if not any(name.endswith("constants.pkl") for name in names):
        return "it holds weights or a pickled module; save torch.jit.trace(module, example) with torch.jit.save"
    return "compare its sha256 with the original, and export it with a torch that is not newer than this one"


def describe(path):
    """forward()'s arguments and results with their types, as text for an error message."""
    schema = open_module(path, "cpu").forward.schema
    arguments = ", ".join(f"{argument.name}: {argument.type}" for argument in schema.arguments[1:])
    return f"forward() takes ({arguments}) and returns {', '.join(str(value.type) for value in schema.returns)}"


def set_execution_mode(config, device):
    """Threads and optimisations of this process, by the parameters that NVIDIA documents."""
    threads = edge.integer_parameter(config, "INTRA_OP_THREAD_COUNT", edge.default_threads(config))
    torch.set_num_threads(max(1, threads))
    torch.set_num_interop_threads(max(1, edge.integer_parameter(config, "INTER_OP_THREAD_COUNT", 1)))
    torch.set_grad_enabled(False)
    # Profiling and fusion pay on a GPU. On a CPU they bring nothing here (measured: 7.0 ms with and without),
    # but make the second call slow too, and again with every new shape.
    on_gpu = device.type == "cuda"
    jit = torch._C  # noqa: SLF001 - torch offers these switches under no public name
    jit._jit_set_profiling_executor(edge.boolean_parameter(config, "ENABLE_JIT_EXECUTOR", True))  # noqa: SLF001
    jit._jit_set_profiling_mode(edge.boolean_parameter(config, "ENABLE_JIT_PROFILING", on_gpu))  # noqa: SLF001
    jit._jit_set_texpr_fuser_enabled(edge.boolean_parameter(config, "ENABLE_TENSOR_FUSER", on_gpu))  # noqa: SLF001


def choose_device(args):
    """Where this instance runs: its GPU, or the CPU with a warning when this torch cannot use one."""
    gpu = edge.gpu_index(args)
    if gpu is None:
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda", gpu)
    pb_utils.Logger.log_warn(
        f"{args['model_name']}: this torch has no CUDA, so the instance runs on the CPU; "
        "install a CUDA build of torch to use the GPU"
    )
    return torch.device("cpu")


def position(name):
    """N of a name such as INPUT__N, or None."""
    found = NAMED_INDEX.fullmatch(name)
    return int(found[1]) if found else None


def input_order(module, config):
    """The configured input names in the order of forward()'s arguments, and whether forward() takes a dict.

    As NVIDIA's backend does it: all by argument name; otherwise all by NAME__N; otherwise in the order
    of config.pbtxt.
    """
    names = [name for name, _, _ in edge.declared(config, "input")]
    arguments = module.forward.schema.arguments[1:]
    if len(arguments) == 1 and str(arguments[0].type).startswith("Dict"):
        return names, True
    where = f"config.pbtxt of model '{config['name']}'"
    known = [argument.name for argument in arguments]
    required = [argument.name for argument in arguments if not argument.has_default_value()]
    if not len(required) <= len(names) <= len(known):
        edge.fail(
            f"config.pbtxt declares {len(names)} input(s), forward() takes {len(known)}: {', '.join(known)}",
            where,
            "declare one input for each argument of forward(), by its name or as INPUT__0, INPUT__1, ...",
        )
    if all(name in known for name in names):
        return sorted(names, key=known.index), False
    positions = {name: position(name) for name in names}
    if None in positions.values():
        return names, False
    if sorted(positions.values()) != list(range(len(names))):
        edge.fail(
            f"the inputs {', '.join(names)} do not number the arguments of forward() from 0",
            where,
            f"name them {', '.join(f'INPUT__{number}' for number in range(len(names)))}",
        )
    return sorted(names, key=lambda name: positions[name]), False


def output_order(config):
    """{name: index} of the outputs: by NAME__N for all, otherwise the order of config.pbtxt."""
    names = [name for name, _, _ in edge.declared(config, "output")]
    positions = {name: position(name) for name in names}
    if None in positions.values():
        return {name: index for index, name in enumerate(names)}
    return positions


def flatten(result, order):
    """forward()'s result as {output name: tensor}, for a tensor and for a tuple, list or dict of tensors."""
    if isinstance(result, dict):
        if all(name in result for name in order):
            return {name: result[name] for name in order}
        result = list(result.values())
    values = list(result) if isinstance(result, (tuple, list)) else [result]
    if max(order.values()) >= len(values):
        raise ValueError(
            f"forward() returned {len(values)} tensor(s), config.pbtxt declares {', '.join(order)}; "
            "declare the outputs that the model returns, numbered from 0"
        )
    for name, index in order.items():
        if not isinstance(values[index], torch.Tensor):
            raise TypeError(f"forward() returned a {type(values[index]).__name__} for '{name}', not a tensor")
    return {name: values[index] for name, index in order.items()}


class Runner:
    """The module of one instance with all that is needed to run it on arrays."""

    def __init__(self, config, args, path):
        self._config = config
        self.device = choose_device(args)
        set_execution_mode(config, self.device)
        self._module = open_module(path, self.device)
        self._optimized = not edge.boolean_parameter(config, "DISABLE_OPTIMIZED_EXECUTION", False)
        self._inputs, self._takes_dict = input_order(self._module, config)
        self._outputs = output_order(config)
        self._types = {name: kind for name, kind, _ in edge.declared(config, "output")}

    def run(self, arrays, wanted):
        """Arrays by input name to arrays by output name, for the `wanted` outputs."""
        outputs = flatten(self._forward(arrays), self._outputs)
        found = {name: np.atleast_1d(outputs[name].cpu().numpy()) for name in wanted}
        for name, array in found.items():
            kind = edge.TRITON_TYPES.get(array.dtype)
            if kind != self._types[name]:
                raise TypeError(f"output '{name}' is {kind}, config.pbtxt says {self._types[name]}: make them agree")
        return found

    def _forward(self, arrays):
        tensors = {name: torch.from_numpy(array).to(self.device) for name, array in arrays.items()}
        with torch.inference_mode(), torch.jit.optimized_execution(self._optimized):
            if self._takes_dict:
                return self._module(tensors)
            return self._module(*(tensors[name] for name in self._inputs if name in tensors))

    def warm_up(self):
        """Take the slow first calls before traffic comes, and hold the results against config.pbtxt."""
        inputs = edge.warm_up_inputs(self._config, 1)
        if inputs is None:
            return
        try:
            for _ in range(WARM_UP_CALLS):
                result = self._forward(inputs)
        except Exception as error:  # noqa: BLE001 - zeros may be no valid input here; real requests will tell
            pb_utils.Logger.log_warn(f"{self._config['name']}: not warmed up with zeros: {error}")
            return
        if isinstance(result, (list, dict)):
            pb_utils.Logger.log_warn(
                f"{self._config['name']}: forward() returns a {type(result).__name__}, which NVIDIA's PyTorch "
                "backend refuses; return a tensor or a tuple of tensors to serve this model there"
            )
        self._check_result(result)

    def _check_result(self, result):
        where = f"config.pbtxt of model '{self._config['name']}'"
        try:
            outputs = flatten(result, self._outputs)
        except (ValueError, TypeError) as error:
            edge.fail(str(error), where, "make the outputs of config.pbtxt those of forward()")
        batched = int(self._config["max_batch_size"]) > 0
        for name, kind, dims in edge.declared(self._config, "output"):
            array = outputs[name].cpu().numpy()
            found = edge.TRITON_TYPES.get(array.dtype, str(array.dtype))
            if found != kind:
                edge.fail(f"output '{name}' is {kind} in config.pbtxt and {found} in the model", where,
                          f"set data_type: {found}")  # fmt: skip
            shape = list(array.shape[1:] if batched else array.shape) or [1]
            if not edge.dims_allowed(shape, dims):
                edge.fail(f"output '{name}' has dims {dims} in config.pbtxt and {shape} in the model", where,
                          f"set dims: {shape}" + (" (the batch axis is left out)" if batched else ""))  # fmt: skip
