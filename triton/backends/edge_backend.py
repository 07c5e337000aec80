"""What both Python-based backends share: model files, batching, errors per request, the memory gauge.

Triton starts one stub process per model instance with the backend's own folder on sys.path, so the
embedded stack copies this file beside each model.py (see gateway/local/backend_directory.py).
"""

import os
import re
import threading
import time
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

NUMPY_TYPES = {
    "TYPE_BOOL": np.bool_,
    "TYPE_UINT8": np.uint8,
    "TYPE_UINT16": np.uint16,
    "TYPE_UINT32": np.uint32,
    "TYPE_UINT64": np.uint64,
    "TYPE_INT8": np.int8,
    "TYPE_INT16": np.int16,
    "TYPE_INT32": np.int32,
    "TYPE_INT64": np.int64,
    "TYPE_FP16": np.float16,
    "TYPE_FP32": np.float32,
    "TYPE_FP64": np.float64,
}
TRITON_TYPES = {np.dtype(kind): name for name, kind in NUMPY_TYPES.items()}
GAUGE_NAME = "edge_backend_resident_memory_bytes"
GAUGE_PERIOD_S = 2.0
PARENT_CHECK_S = 0.5


class ModelError(Exception):
    """The model cannot be loaded: says what, where and how to fix it."""


class InputError(ValueError):
    """One request does not fit the model; the others of its batch are served."""


def fail(what, where, fix):
    """Raise the one form of load error that all our messages have."""
    raise ModelError(f"{what} ({where}). Fix: {fix}")


def model_file(version_folder, config, default_name):
    """The model file of one version, known to exist, readable and not empty."""
    name = config.get("default_model_filename") or default_name
    path = Path(version_folder) / name
    if not path.is_file():
        present = sorted(p.name for p in Path(version_folder).glob("*"))[:8]
        seen = f"the folder has {', '.join(present)}" if present else "the folder is empty or missing"
        fail(
            f"there is no model file '{name}'; {seen}",
            path,
            f"put the model there as '{name}', or name it with default_model_filename in config.pbtxt",
        )
    if not os.access(path, os.R_OK):
        fail("the model file cannot be read by Triton's user", path, f"chmod a+r {path}")
    if path.stat().st_size == 0:
        fail("the model file is empty (0 bytes)", path, "copy it again, completely, before loading")
    return path


def stub_version_folder():
    """The version folder that Triton gave this stub, for auto_complete_config, which is told no path.

    The stub's command line starts with <model folder>/<version>/<file name>.
    """
    words = Path("/proc/self/cmdline").read_bytes().split(b"\0")
    return Path(os.fsdecode(words[1])).parent


def parameter(config, key):
    """A `parameters` entry of config.pbtxt as text, or None."""
    entry = config.get("parameters", {}).get(key)
    return entry.get("string_value") if entry else None


def integer_parameter(config, key, default):
    """A whole number from `parameters`; anything else is a load error that names the key."""
    text = parameter(config, key)
    if text is None or text.strip() == "":
        return default
    if not re.fullmatch(r"\s*-?\d+\s*", text):
        fail(f"parameter {key} is '{text}', not a whole number", "config.pbtxt", f"give {key} a whole number")
    return int(text)


def boolean_parameter(config, key, default):
    """A switch from `parameters` as NVIDIA's backends read it: true/false or 1/0."""
    text = (parameter(config, key) or "").strip().lower()
    if text == "":
        return default
    if text not in {"true", "false", "1", "0"}:
        fail(f"parameter {key} is '{text}', neither true nor false", "config.pbtxt", f"set {key} to true or false")
    return text in {"true", "1"}


def default_threads(config):
    """Threads for one instance: half of the cores, shared among the instances, at least one.

    NVIDIA's backends take all cores per model. Here every model is served twice and both variants are
    often asked at the same moment, on a machine that also decodes pictures: all cores for each would
    make the two fight for them. The halves let both run side by side.
    """
    cores = len(os.sched_getaffinity(0))
    instances = sum(int(group.get("count", 1)) for group in config.get("instance_group", [])) or 1
    return max(1, cores // 2 // instances)


def gpu_index(args):
    """The GPU on which this instance should run, or None for the CPU."""
    return int(args["model_instance_device_id"]) if args["model_instance_kind"] == "GPU" else None


def declared(config, side):
    """(name, Triton type, dims) of each `input` or `output`; dims exclude the batch axis, as in config.pbtxt."""
    found = []
    for tensor in config.get(side, []):
        if tensor["data_type"] not in NUMPY_TYPES:
            fail(
                f"{side} '{tensor['name']}' has data_type {tensor['data_type']}",
                "config.pbtxt",
                f"use one of {', '.join(NUMPY_TYPES)}",
            )
        reshape = tensor.get("reshape")
        dims = reshape.get("shape", []) if reshape else tensor["dims"]
        found.append((tensor["name"], tensor["data_type"], [int(d) for d in dims]))
    return found


def dims_allowed(dims, model_dims):
    """Whether `dims` of config.pbtxt fit a model; -1 in the model stands for any size."""
    return len(dims) == len(model_dims) and all(model in (-1, dim) for dim, model in zip(dims, model_dims, strict=True))


def warm_up_inputs(config, batch):
    """Zeros for each input of one request, or None when a dimension is left open in config.pbtxt."""
    shapes = {name: (kind, dims) for name, kind, dims in declared(config, "input")}
    if any(dim < 0 for _, dims in shapes.values() for dim in dims):
        return None
    lead = [batch] if int(config["max_batch_size"]) > 0 else []
    return {name: np.zeros(lead + dims, NUMPY_TYPES[kind]) for name, (kind, dims) in shapes.items()}


class Batcher:
    """Answers the requests of one execute() call with as few runs of the model as their shapes allow.

    `run(inputs, names)` takes arrays by input name and returns arrays by output name, at least `names`.
    """

    def __init__(self, config, label, run):
        self._batched = int(config["max_batch_size"]) > 0
        self._label = label
        self._run = run

    def answer(self, requests):
        responses = [None] * len(requests)
        groups = {}
        for index, request in enumerate(requests):
            inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            groups.setdefault(self._key(index, inputs), []).append((index, request, inputs))
        for group in groups.values():
            for index, response in self._answer_group(group):
                responses[index] = response
        return responses

    def _key(self, index, inputs):
        if not self._batched:
            return index
        return tuple(sorted((name, array.shape[1:], array.dtype.str) for name, array in inputs.items()))

    def _answer_group(self, group):
        try:
            return self._run_group(group)
        except Exception as error:  # noqa: BLE001 - runtimes have their own; each must become the answer of its request
            if len(group) > 1:  # one bad request must not fail its neighbours: ask for each alone
                return [pair for member in group for pair in self._answer_group([member])]
            return [(group[0][0], self._error(error))]

    def _run_group(self, group):
        wanted = {name for _, request, _ in group for name in request.requested_output_names()}
        inputs = group[0][2]
        sizes = [next(iter(member[2].values())).shape[0] for member in group] if self._batched else [1]
        if len(group) > 1:
            inputs = {name: np.concatenate([member[2][name] for member in group]) for name in inputs}
        outputs = self._run(inputs, wanted)
        if self._batched:
            self._check_batch(outputs, wanted, sum(sizes))
        pairs, start = [], 0
        for (index, request, _), size in zip(group, sizes, strict=True):
            part = slice(start, start + size) if self._batched and len(group) > 1 else ...
            tensors = [
                pb_utils.Tensor(name, np.ascontiguousarray(outputs[name][part]))
                for name in request.requested_output_names()
            ]
            pairs.append((index, pb_utils.InferenceResponse(output_tensors=tensors)))
            start += size
        return pairs

    def _check_batch(self, outputs, wanted, total):
        for name in wanted:
            shape = outputs[name].shape
            if not shape or shape[0] != total:
                raise ValueError(
                    f"output '{name}' has shape {list(shape)} for a batch of {total}: its first axis is not the "
                    "batch. Set max_batch_size to 0 in config.pbtxt, or export the model with a batch axis"
                )

    def _error(self, error):
        code = pb_utils.TritonError.INVALID_ARG if isinstance(error, InputError) else pb_utils.TritonError.INTERNAL
        text = f"{self._label}: {type(error).__name__}: {error}"
        return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(text, code))


class Watch:
    """A thread per stub: reports its memory to Triton's metrics and ends it when Triton is gone.

    The stub itself asks whether Triton's process id still exists, which stays true for a zombie that no
    one reaps (a container without an init process); the parent's id changes at once.
    """

    def __init__(self, args, provider):
        """`provider` is what the instance runs on, as the library that runs it says: for the metrics alone."""
        self._family = pb_utils.MetricFamily(
            name=GAUGE_NAME,
            description="Resident memory of the process that serves this instance of a model version, in bytes",
            kind=pb_utils.MetricFamily.GAUGE,
        )
        # One series per instance: a reloaded or restarted one takes over the series of its predecessor.
        self._gauge = self._family.Metric(
            labels={
                "model": args["model_name"],
                "version": str(args["model_version"]),
                "instance": args["model_instance_name"],
                "provider": provider,
            }
        )
        self._gauge.set(resident_memory())
        self._parent = os.getppid()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="edge-watch", daemon=True)
        self._thread.start()

    def _loop(self):
        reported = time.monotonic()
        while not self._stop.wait(PARENT_CHECK_S):
            if os.getppid() != self._parent:
                os._exit(0)
            if time.monotonic() - reported >= GAUGE_PERIOD_S:
                self._gauge.set(resident_memory())
                reported = time.monotonic()

    def close_and_exit(self):
        """End this process with its series at 0; called last in finalize.

        Not by returning: the destructor of a metric would delete the series in Triton, although the
        successor of this instance may hold it by then (measured: series lost, then Triton hung).
        """
        self._stop.set()
        self._thread.join()
        self._gauge.set(0)
        os._exit(0)


def resident_memory():
    """Bytes of this process that lie in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
