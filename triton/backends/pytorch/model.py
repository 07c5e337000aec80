"""Serves `platform: "pytorch_libtorch"` in the embedded Triton, from what NVIDIA's container serves."""

import json
import re
import zipfile
from pathlib import Path

import edge_backend as edge
import numpy as np
import torch
import triton_python_backend_utils as pb_utils

DEFAULT_NAME = "model.pt"
# The profiling executor specialises on the second call; a third shows that the model has settled.
WARM_UP_CALLS = 3
NAMED_INDEX = re.compile(r"[^_].*?__(\d+)")


def open_model(path, device):
    """The TorchScript module in evaluation mode, or a load error that says what is wrong with the file."""
    try:
        module = torch.jit.load(str(path), map_location=device)
    except (RuntimeError, ValueError, EOFError) as error:
        reason = str(error).strip().splitlines()[0]
        edge.fail(f"torch {torch.__version__} cannot read the model: {reason}", path, advice(path))
    module.eval()
    return module


def advice(path):
    """How to fix a file that torch.jit.load refuses, by what the file looks like."""
    if not zipfile.is_zipfile(path):
        return "it is no complete TorchScript archive; copy it again and compare its sha256 with the original"
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if not any(name.endswith("constants.pkl") for name in names):
        return "it holds weights or a pickled module; save it with torch.jit.save(torch.jit.trace(model, example), path)"
    return "compare its sha256 with the original, and export it with a torch that is not newer than this one"


def set_execution_mode(config):
    """Threads and optimisations of this process, by the parameters that NVIDIA documents."""
    torch.set_num_threads(
        max(1, edge.integer_parameter(config, "INTRA_OP_THREAD_COUNT", edge.default_threads(config)))
    )
    torch.set_num_interop_threads(max(1, edge.integer_parameter(config, "INTER_OP_THREAD_COUNT", 1)))
    torch.set_grad_enabled(False)
    # torch's own names; its documentation refers to these for want of public ones.
    torch._C._jit_set_profiling_executor(edge.boolean_parameter(config, "ENABLE_JIT_EXECUTOR", True))
    torch._C._jit_set_profiling_mode(edge.boolean_parameter(config, "ENABLE_JIT_PROFILING", False))
    torch._C._jit_set_texpr_fuser_enabled(edge.boolean_parameter(config, "ENABLE_TENSOR_FUSER", False))


def position(name):
    """N of a name such as INPUT__N, or None."""
    found = NAMED_INDEX.fullmatch(name)
    return int(found[1]) if found else None


def input_order(module, config):
    """The configured input names in the order of forward()'s arguments, and whether forward() takes a dict.

    As NVIDIA's backend does it: by argument name; otherwise all by NAME__N; otherwise in the order of
    config.pbtxt.
    """
    arguments = module.forward.schema.arguments[1:]
    names = [name for name, _, _ in edge.declared(config, "input")]
    if len(arguments) == 1 and str(arguments[0].type).startswith("Dict"):
        return names, True
    where = f"config.pbtxt of model '{config['name']}'"
    known = [argument.name for argument in arguments]
    required = [argument.name for argument in arguments if not argument.has_default_value()]
    if not len(required) <= len(names) <= len(known):
        edge.fail(
            f"config.pbtxt declares {len(names)} inputs, forward() takes {len(known)}: {', '.join(known)}",
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
            f"name them {', '.join(f'INPUT__{n}' for n in range(len(names)))}",
        )
    return sorted(names, key=lambda name: positions[name]), False


def output_order(config):
    """{name: index} of the outputs: NAME__N for all, otherwise the order of config.pbtxt."""
    names = [name for name, _, _ in edge.declared(config, "output")]
    positions = {name: position(name) for name in names}
    if None in positions.values():
        return {name: index for index, name in enumerate(names)}
    return positions


def flatten(result, order):
    """forward()'s result as {output name: tensor} for a tensor, tuple, list or dict of tensors."""
    if isinstance(result, dict):
        values = list(result.values())
        by_key = {name: result[name] for name in order if name in result}
        return by_key if len(by_key) == len(order) else pick(values, order)
    return pick(list(result) if isinstance(result, (tuple, list)) else [result], order)


def pick(values, order):
    """The values at the positions that the output names ask for."""
    last = max(order.values())
    if last >= len(values):
        raise ValueError(
            f"forward() returned {len(values)} tensor(s), config.pbtxt declares output {last} "
            f"({', '.join(order)}). Declare as many outputs as the model returns"
        )
    for index in order.values():
        if not isinstance(values[index], torch.Tensor):
            raise TypeError(f"forward() returned {type(values[index]).__name__} at {index}, not a tensor")
    return {name: values[index] for name, index in order.items()}


class TritonPythonModel:
    """One instance: a TorchScript module in its own process."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config):
        """Say what is missing: TorchScript knows its arguments but no shapes, so nothing can be filled in."""
        config = auto_complete_model_config.as_dict()
        missing = [side for side in ("input", "output") if not config.get(side)]
        if not missing:
            return auto_complete_model_config
        path = edge.model_file(edge.stub_version_folder(), config, DEFAULT_NAME)
        schema = open_model(path, "cpu").forward.schema
        arguments = ", ".join(f"{a.name}: {a.type}" for a in schema.arguments[1:])
        returns = ", ".join(str(r.type) for r in schema.returns)
        return edge.fail(
            f"config.pbtxt of a TorchScript model must declare {' and '.join(missing)}: the file holds no shapes. "
            f"forward() takes ({arguments}) and returns {returns}",
            path,
            "add name (forward()'s argument or INPUT__0; outputs OUTPUT__0, ...), data_type and dims to config.pbtxt",
        )

    def initialize(self, args):
        config = json.loads(args["model_config"])
        path = edge.model_file(Path(args["model_repository"]) / args["model_version"], config, DEFAULT_NAME)
        set_execution_mode(config)
        self._device = self._choose_device(args)
        self._module = open_model(path, self._device)
        self._optimized = not edge.boolean_parameter(config, "DISABLE_OPTIMIZED_EXECUTION", False)
        self._inputs, self._takes_dict = input_order(self._module, config)
        self._outputs = output_order(config)
        self._types = {name: kind for name, kind, _ in edge.declared(config, "output")}
        self._batcher = edge.Batcher(config, f"model '{args['model_name']}'", self._run)
        self._warm_up(config)
        self._watch = edge.Watch(args)

    def _choose_device(self, args):
        gpu = edge.gpu_index(args)
        if gpu is None:
            return torch.device("cpu")
        if not torch.cuda.is_available():
            pb_utils.Logger.log_warn(
                f"{args['model_name']}: this torch has no CUDA, so the instance runs on the CPU; "
                "install a CUDA build of torch to use the GPU"
            )
            return torch.device("cpu")
        return torch.device("cuda", gpu)

    def _warm_up(self, config):
        inputs = edge.warm_up_inputs(config, 1)
        if inputs is None:
            return
        try:
            for _ in range(WARM_UP_CALLS):
                result = self._forward(inputs)
        except Exception as error:  # noqa: BLE001 - zeros may be no valid input here; real requests will tell
            pb_utils.Logger.log_warn(f"{config['name']}: not warmed up with zeros: {error}")
            return
        self._check_outputs(config, result)

    def _check_outputs(self, config, result):
        where = f"config.pbtxt of model '{config['name']}'"
        try:
            outputs = flatten(result, self._outputs)
        except (ValueError, TypeError) as error:
            edge.fail(str(error), where, "make the outputs of config.pbtxt those of forward()")
        if isinstance(result, (list, dict)):
            pb_utils.Logger.log_warn(
                f"{config['name']}: forward() returns a {type(result).__name__}, which NVIDIA's PyTorch backend "
                "refuses; return a tensor or a tuple of tensors to serve this model there"
            )
        batched = int(config["max_batch_size"]) > 0
        for name, kind, dims in edge.declared(config, "output"):
            array = outputs[name].cpu().numpy()
            if edge.TRITON_TYPES.get(array.dtype) != kind:
                found = edge.TRITON_TYPES.get(array.dtype, str(array.dtype))
                edge.fail(f"output '{name}' is {kind} in config.pbtxt and {found} in the model", where,
                          f"set data_type: {found}")
            shape = list(array.shape[1:] if batched else array.shape)
            if not edge.dims_allowed(shape, dims):
                edge.fail(f"output '{name}' has dims {dims} in config.pbtxt and {shape} in the model", where,
                          f"set dims: {shape}" + (" (the batch axis is left out)" if batched else ""))

    def _forward(self, arrays):
        tensors = {name: torch.from_numpy(array).to(self._device) for name, array in arrays.items()}
        with torch.inference_mode(), torch.jit.optimized_execution(self._optimized):
            if self._takes_dict:
                return self._module(tensors)
            return self._module(*(tensors[name] for name in self._inputs))

    def _run(self, arrays, wanted):
        outputs = flatten(self._forward(arrays), self._outputs)
        found = {}
        for name in wanted:
            array = outputs[name].cpu().numpy()
            if edge.TRITON_TYPES.get(array.dtype) != self._types[name]:
                raise TypeError(
                    f"output '{name}' is {array.dtype}, config.pbtxt declares {self._types[name]}; make them agree"
                )
            found[name] = np.atleast_1d(array)
        return found

    def execute(self, requests):
        return self._batcher.answer(requests)

    def finalize(self):
        self._watch.close()
