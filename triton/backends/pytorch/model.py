"""Serves `platform: "pytorch_libtorch"` in the embedded Triton, from what NVIDIA's container serves."""

import json
from pathlib import Path

import edge_backend as edge

DEFAULT_NAME = "model.pt"


class TritonPythonModel:
    """One instance: a TorchScript module in its own process."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config):
        """Say what is missing: TorchScript knows its arguments but no shapes, so nothing can be filled in."""
        config = auto_complete_model_config.as_dict()
        missing = [side for side in ("input", "output") if not config.get(side)]
        if not missing:
            return auto_complete_model_config
        import torchscript

        path = edge.model_file(edge.stub_version_folder(), config, DEFAULT_NAME)
        return edge.fail(
            f"config.pbtxt of a TorchScript model must declare {' and '.join(missing)}, because the file holds no "
            f"shapes; {torchscript.describe(path)}",
            path,
            "add name (forward()'s argument or INPUT__0; outputs OUTPUT__0, ...), data_type and dims to config.pbtxt",
        )

    def initialize(self, args):
        config = json.loads(args["model_config"])
        path = edge.model_file(Path(args["model_repository"]) / args["model_version"], config, DEFAULT_NAME)
        import torchscript

        runner = torchscript.Runner(config, args, path)
        self._batcher = edge.Batcher(config, f"model '{args['model_name']}'", runner.run)
        runner.warm_up()
        self._watch = edge.Watch(args, runner.device.type)

    def execute(self, requests):
        return self._batcher.answer(requests)

    def finalize(self):
        self._watch.close_and_exit()
