"""Serves `platform: "onnxruntime_onnx"` in the embedded Triton, from what NVIDIA's container serves."""

import json
from pathlib import Path

import edge_backend as edge
import numpy as np
import triton_python_backend_utils as pb_utils

DEFAULT_NAME = "model.onnx"
DEFAULT_MAX_BATCH = 4  # what NVIDIA's ONNX Runtime backend fills in for a model that can batch
# onnxruntime says "tensor(float)"; the same names as in its get_inputs() and get_outputs().
TYPES = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(uint32)": "TYPE_UINT32",
    "tensor(uint64)": "TYPE_UINT64",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
}
# config.pbtxt's TensorRT keys whose name differs from the option of onnxruntime's TensorRT provider.
TENSORRT_OPTIONS = {
    "max_workspace_size_bytes": "trt_max_workspace_size",
    "int8_calibration_table_name": "trt_int8_calibration_table_name",
    "int8_use_native_calibration_table": "trt_int8_use_native_calibration_table",
}


def providers(config, gpu, available):
    """Execution providers for one instance, best first; `gpu` is its device or None."""
    chosen = []
    if gpu is not None:
        accelerators = config.get("optimization", {}).get("execution_accelerators", {})
        chosen += [
            ("TensorrtExecutionProvider", tensorrt_options(accelerator, gpu))
            for accelerator in accelerators.get("gpu_execution_accelerator", [])
            if accelerator["name"] == "tensorrt" and "TensorrtExecutionProvider" in available
        ]
        if "CUDAExecutionProvider" in available:
            chosen.append(("CUDAExecutionProvider", {"device_id": gpu}))
    return [*chosen, ("CPUExecutionProvider", {})]


def tensorrt_options(accelerator, gpu):
    """The provider's options for an accelerator entry of config.pbtxt."""
    options = {"device_id": gpu}
    for key, value in accelerator.get("parameters", {}).items():
        if key == "precision_mode":
            options["trt_fp16_enable"] = value in {"FP16", "INT8"}
            options["trt_int8_enable"] = value == "INT8"
        else:
            options[TENSORRT_OPTIONS.get(key, key)] = value
    return options


def session_options(config):
    """onnxruntime's options for the `parameters` and `optimization` that NVIDIA documents."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = edge.integer_parameter(config, "intra_op_thread_count", edge.default_threads(config))
    options.inter_op_num_threads = edge.integer_parameter(config, "inter_op_thread_count", 1)
    if edge.integer_parameter(config, "execution_mode", 0) == 1:
        options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
    options.enable_cpu_mem_arena = edge.boolean_parameter(config, "enable_mem_arena", True)
    options.enable_mem_pattern = edge.boolean_parameter(config, "enable_mem_pattern", True)
    level = int(config.get("optimization", {}).get("graph", {}).get("level", 0))
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = {
        -1: levels.ORT_ENABLE_BASIC,
        1: levels.ORT_ENABLE_EXTENDED,
        2: levels.ORT_DISABLE_ALL,
    }.get(level, levels.ORT_ENABLE_ALL)
    # Idle threads that spin would take the cores from the gateway, which decodes the next picture meanwhile.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors only: they reach the caller as exceptions anyway
    return options


def onnx_file(version_folder, config):
    """The model file of one version; as on NVIDIA's server it may be a folder that holds the file and its weights."""
    folder = version_folder / (config.get("default_model_filename") or DEFAULT_NAME)
    if folder.is_dir():
        return edge.model_file(folder, {}, DEFAULT_NAME)
    return edge.model_file(version_folder, config, DEFAULT_NAME)


def open_session(path, config, gpu=None):
    """A session on the model file, or a load error that says what is wrong with it."""
    import onnxruntime

    options = session_options(config)
    try:
        return onnxruntime.InferenceSession(
            str(path), options, providers=providers(config, gpu, onnxruntime.get_available_providers())
        )
    except Exception as error:  # noqa: BLE001 - onnxruntime's own exceptions share no base class
        edge.fail(
            f"onnxruntime {onnxruntime.__version__} cannot read the model: {error}",
            path,
            "check that the file is a complete ONNX model (its sha256 against the original) and that its opset "
            "is not newer than this onnxruntime; export it again if so",
        )


def signature(nodes, path):
    """{name: (Triton type, shape)} of the graph's inputs or outputs; an open dimension is -1."""
    found = {}
    for node in nodes:
        if node.type not in TYPES:
            edge.fail(f"tensor '{node.name}' has type {node.type}", path, f"export the model with {', '.join(TYPES)}")
        shape = [dim if isinstance(dim, int) and dim >= 0 else -1 for dim in node.shape]
        found[node.name] = (TYPES[node.type], shape)
    return found


def check_against_config(config, side, graph):
    """Refuse a config.pbtxt whose tensors are not those of the graph, as NVIDIA's backend does."""
    where = f"config.pbtxt of model '{config['name']}'"
    for name, kind, dims in edge.declared(config, side):
        if name not in graph:
            edge.fail(
                f"config.pbtxt declares {side} '{name}', the model has {', '.join(sorted(graph))}",
                where,
                f"use the model's names in config.pbtxt, or leave {side} out to have it filled in",
            )
        graph_kind, shape = graph[name]
        if kind != graph_kind:
            edge.fail(
                f"{side} '{name}' is {kind} in config.pbtxt and {graph_kind} in the model",
                where,
                f"set data_type: {graph_kind}",
            )
        check_dims(config, side, name, dims, shape)
    if side == "input":
        missing = sorted(set(graph) - {tensor["name"] for tensor in config.get("input", [])})
        if missing:
            edge.fail(f"the model needs input {', '.join(missing)}", where, "declare it, or leave all inputs out")


def check_dims(config, side, name, dims, shape):
    """Refuse dims that the graph cannot have; `shape` includes the batch axis, `dims` does not."""
    where = f"config.pbtxt of model '{config['name']}'"
    batched = int(config["max_batch_size"]) > 0
    if batched and (not shape or shape[0] != -1):
        edge.fail(
            f"max_batch_size is {config['max_batch_size']} but {side} '{name}' of the model has shape {shape}, "
            "whose first axis is fixed",
            where,
            "export the model with a dynamic batch axis, or set max_batch_size: 0 and write out the full dims",
        )
    if not shape:  # Triton has no tensors without dimensions: a scalar is declared as [1]
        expected, fits = [1], all(dim == 1 for dim in dims)
    else:
        expected = shape[1:] if batched else shape
        # An output must be declared exactly; an input may fix a dimension that the model leaves open.
        fits = dims == expected if side == "output" else edge.dims_allowed(dims, expected)
    if not fits:
        advice = f"set dims: {expected}" if expected else "set dims: [1] reshape: { shape: [] }"
        edge.fail(
            f"{side} '{name}' has dims {dims} in config.pbtxt and {expected} in the model",
            where,
            advice + (" (the batch axis is left out)" if batched else ""),
        )


def can_batch(graphs):
    """Whether every tensor has an open first axis, which NVIDIA's backend takes for the batch."""
    return all(shape and shape[0] == -1 for graph in graphs for _, shape in graph.values())


def declarations(graph, batching):
    """The entries of config.pbtxt for a graph's inputs or outputs."""
    found = []
    for name, (kind, shape) in graph.items():
        dims = shape[1:] if batching else shape
        found.append({"name": name, "data_type": kind, "dims": dims or [1]})
        if batching and not dims:  # one number for each of the batch; Triton needs a dimension beside it
            found[-1]["reshape"] = {"shape": []}
    return found


class TritonPythonModel:
    """One instance: an onnxruntime session in its own process."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config):
        """Fill in inputs, outputs and max_batch_size from the graph, by the rules of NVIDIA's backend."""
        config = auto_complete_model_config.as_dict()
        missing = [side for side in ("input", "output") if not config.get(side)]
        if not missing:
            return auto_complete_model_config  # a complete configuration is left as it is
        path = onnx_file(edge.stub_version_folder(), config)
        session = open_session(path, config)
        graphs = {"input": signature(session.get_inputs(), path), "output": signature(session.get_outputs(), path)}
        batching = can_batch(graphs.values())
        if batching and int(config["max_batch_size"]) == 0:
            auto_complete_model_config.set_max_batch_size(DEFAULT_MAX_BATCH)
        if not batching and int(config["max_batch_size"]) > 0:
            edge.fail(
                f"max_batch_size is {config['max_batch_size']} but the model's first axis is fixed",
                path,
                "set max_batch_size: 0, or export the model with a dynamic batch axis",
            )
        if int(config["max_batch_size"]) > 1 and "sequence_batching" not in config:
            auto_complete_model_config.set_dynamic_batching()
        for side in missing:  # not by add_input and add_output, which take no reshape
            config[side] = declarations(graphs[side], batching)
        return auto_complete_model_config

    def initialize(self, args):
        config = json.loads(args["model_config"])
        path = onnx_file(Path(args["model_repository"]) / args["model_version"], config)
        gpu = edge.gpu_index(args)
        self._session = open_session(path, config, gpu)
        if gpu is not None and self._session.get_providers() == ["CPUExecutionProvider"]:
            pb_utils.Logger.log_warn(
                f"{args['model_name']}: this onnxruntime has no CUDA provider, so the instance runs on the CPU; "
                "install onnxruntime-gpu to use the GPU"
            )
        inputs = signature(self._session.get_inputs(), path)
        check_against_config(config, "input", inputs)
        check_against_config(config, "output", signature(self._session.get_outputs(), path))
        # Triton has no tensors without dimensions: such an input arrives with shape [1].
        self._scalars = [name for name, (_, shape) in inputs.items() if not shape]
        self._batcher = edge.Batcher(config, f"model '{args['model_name']}'", self._run)
        self._warm_up(config)
        self._watch = edge.Watch(args, self._session.get_providers()[0])

    def _warm_up(self, config):
        # The first run allocates the arena; without this the first snapshot would pay for it.
        inputs = edge.warm_up_inputs(config, 1)
        if inputs is None:
            return
        try:
            self._session.run(None, inputs)
        except Exception as error:  # noqa: BLE001 - zeros may be no valid input for this model; real requests will tell
            pb_utils.Logger.log_warn(f"{config['name']}: not warmed up with zeros: {error}")

    def _run(self, inputs, wanted):
        from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

        names = sorted(wanted)
        for name in self._scalars:
            inputs[name] = inputs[name].reshape(())
        try:
            arrays = self._session.run(names, inputs)
        except InvalidArgument as error:
            raise edge.InputError(str(error)) from error
        return {name: np.atleast_1d(array) for name, array in zip(names, arrays, strict=True)}

    def execute(self, requests):
        return self._batcher.answer(requests)

    def finalize(self):
        self._watch.close_and_exit()
