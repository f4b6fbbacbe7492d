"""Evaluate: `lafr eval benchmark=NAME`. Restores a set, scores it, prints and writes the table.

`outputs=FOLDER` scores what another method restored. Run again, a stopped run resumes; `accelerate launch` shares the
work among processes.
"""

import inspect
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lafr.commands.launch import command_line, end_with_launcher, run
from lafr.commands.processes import require_shared
from lafr.storage import locked, shipped

if TYPE_CHECKING:  # imported late: the configuration is composed before torch is loaded
    from lafr.errors import InputError
    from lafr.evaluation.plan import Plan
    from lafr.evaluation.progress import Processes

MINI_CONTROLS = {"no adapter": "mini/none", "conv adapter": "mini/conv", "one hard code": "mini/paper"}


def plan_from_config(cfg: Any, command: str = "") -> "Plan":
    """Return the plan of a composed `configs/eval.yaml`: the one place that knows its keys."""
    from omegaconf import OmegaConf

    from lafr.evaluation.plan import Plan, chosen_methods

    name, build = cfg.benchmark.name, cfg.benchmark.build
    mini = MINI_CONTROLS if cfg.model.folder == "mini" else {}
    controls = dict(mini if cfg.controls is None else cfg.controls)
    outputs = folders_of_outputs(cfg.outputs)
    protocol = cfg.get("protocol")
    definitions = protocol_metrics(protocol, cfg.metrics) if protocol else cfg.metrics
    return Plan(
        benchmark=name,
        build_benchmark=benchmark_builder(build, None if takes_no_degradation(build) else cfg.degradation),
        metrics={metric: partial(built, definition) for metric, definition in definitions.items()},
        methods=chosen_methods(cfg.methods, controls, outputs),
        model=cfg.model.folder,
        model_remedy=model_remedy(cfg),
        base=cfg.base,
        decoder=cfg.decoder,
        controls=controls,
        outputs=outputs,
        fidelity=cfg.fidelity,
        sweep=tuple(cfg.sweep or ()),
        curve=(cfg.curve.x, cfg.curve.y),
        side=cfg.benchmark.get("resolution"),
        severity=cfg.benchmark.get("severity"),
        limit=cfg.limit,
        protocol=protocol.name if protocol else None,
        groups=cfg.groups if cfg.groups is not None else groups_next_to(build.get("root"), name),
        seed=cfg.seed,
        batch_size=cfg.batch_size,
        truth_cache=cfg.truth_cache,
        run_name=cfg.run_name,
        output=cfg.output,
        report=cfg.report,
        explain=cfg.explain,
        publish=cfg.publish,
        device=cfg.device,
        command=command,
        config=OmegaConf.to_container(cfg, resolve=True),
    )


def model_remedy(cfg: Any) -> str:
    """Return how to get the model that the benchmark names; empty for a model that the user chose."""
    named = cfg.benchmark.get("model")
    return named.remedy if named and named.folder == cfg.model.folder else ""


def built(definition: Mapping) -> Any:
    """Return what a definition builds; an InputError comes out as such, not wrapped by Hydra."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    from lafr.errors import InputError

    try:
        return instantiate(definition, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        raise


def takes_no_degradation(build: Mapping) -> bool:
    """Return whether a benchmark's definition needs no recipe: it has its own, or its LQ images are files."""
    from hydra.utils import get_object

    return "degradation" in build or "degradation" not in inspect.signature(get_object(build["_target_"])).parameters


def benchmark_builder(build: Mapping, degradation: Mapping | None) -> Callable[[int], Any]:
    """Return the function that builds the test set at a side in pixels."""
    from hydra.utils import instantiate

    def build_at(side: int) -> Any:
        settings = {"resolution": side}
        if degradation is not None:
            settings["degradation"] = instantiate(degradation, _convert_="all")
        # passed to `instantiate`, the degradation, a dataclass, would become a dict
        return instantiate(build, _convert_="all", _partial_=True)(**settings)

    return build_at


def protocol_metrics(protocol: Any, composed: Mapping) -> dict[str, Mapping]:
    """Return the definitions of a protocol's metrics, from all files of `configs/metrics`.

    Those that the protocol calls optional are the user's own: taken where `composed`, the configuration's metrics,
    defines them.
    """
    from omegaconf import OmegaConf

    from lafr.errors import InputError

    known: dict[str, Mapping] = {}
    names = list(protocol.metrics)
    for optional in protocol.get("optional", ()):
        if optional in composed:
            names.append(optional)
            known[optional] = composed[optional]
    for path in sorted((shipped("configs") / "metrics").glob("*.yaml")):
        known |= dict(OmegaConf.load(path).items())
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"protocol {protocol.name} names metrics that configs/metrics does not define: {unknown}")
    return {name: known[name] for name in names}


def folders_of_outputs(given: Any) -> dict[str, Path]:
    """Return method -> folder of other methods' images, given as a folder, a list of them or a mapping."""
    from omegaconf import OmegaConf

    from lafr.evaluation.outputs import folders_of

    if not given:
        return {}
    if isinstance(given, str) and given[:1] in "[{" and not Path(given).exists():
        given = OmegaConf.create(given)  # the command line's paths come quoted, lists and mappings too
    return folders_of(OmegaConf.to_container(given) if OmegaConf.is_config(given) else given)


def groups_next_to(root: str | None, benchmark: str) -> str | None:
    """Return the CSV of a set's groups, `NAME_info.csv` in its folder or next to it, if there is one."""
    folders = [Path(root), Path(root).parent] if root else []
    places = [folder / f"{benchmark}_info.csv" for folder in folders]
    return next((str(place) for place in places if place.is_file()), None)


def start(device: str, work: Path) -> "tuple[Processes, Any]":
    """Return this process among those that `accelerate launch` started, and its device; all must share `work`."""
    from lafr.commands.devices import choose_device, share_cores
    from lafr.evaluation.progress import Processes

    share_cores()
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return Processes(), choose_device(device)
    from datetime import timedelta

    from accelerate import Accelerator, InitProcessGroupKwargs

    patient = InitProcessGroupKwargs(timeout=timedelta(days=7))  # one process may finish long before the others
    state = Accelerator(kwargs_handlers=[patient])
    require_shared(state, output=work)
    chosen = state.device if device == "auto" else choose_device(device)
    return Processes(state.process_index, state.num_processes, state.wait_for_everyone), chosen


def main(cfg: Any) -> None:
    """Restore and score the benchmark with the model and its controls, or score what others restored.

    With `explain`, what cannot be measured on this machine is explained all the same.
    """
    end_with_launcher()
    plan = plan_from_config(cfg, command_line())
    if plan.needs_model and not plan.lacks_model and os.environ.get("RANK", "0") == "0":
        print(f"loading {plan.model} ...", file=sys.stderr, flush=True)
    from lafr.commands.doors import as_hydra, as_started
    from lafr.evaluation.protocols import explain
    from lafr.evaluation.publishing import publish
    from lafr.evaluation.run import MissingError, evaluate

    processes, device = start(plan.device, plan.work)
    with locked(plan.work / ".lock") if processes.is_main else nullcontext():
        try:
            result = evaluate(plan, device, processes, notify)
        except MissingError as error:
            if not plan.explain:
                raise
            if processes.is_main:
                print(explain({"not_measured": error.not_measured}))
                print(as_started(f"\nNothing was measured: {error.spelled(as_hydra)}"))
            return
        if result is not None:  # in the main process
            publish(plan, result)


def notify(said: "str | InputError") -> None:
    """Print what the user should know before the work begins; a doubt in the words of this command."""
    from lafr.commands.doors import as_hydra

    text = said if isinstance(said, str) else f"warning: {said.spelled(as_hydra)}"
    print(text, file=sys.stderr, flush=True)


def command() -> None:
    """Run the command line; `explain=true` without a benchmark explains the definitions alone."""
    given = ["explain=true" if argument == "--explain" else argument for argument in sys.argv[1:]]
    keys = {argument.partition("=")[0] for argument in given}
    if "explain=true" in given and "benchmark" not in keys:
        given.append("benchmark=pair")  # without folders nothing of it can be measured
    sys.argv[1:] = given
    run(main, "eval")


if __name__ == "__main__":
    command()
