"""Restore files: a picture or a folder of aligned faces into a folder, in batches."""

from collections import Counter
from pathlib import Path

import torch
from tqdm import tqdm

from lafr.errors import InputError
from lafr.images import list_images, read_image, write_image


@torch.no_grad()
def restore_files(
    restorer,
    source: Path,
    output: Path,
    batch_size: int = 8,
    side_by_side: bool = True,
    equal_batches: bool = False,
) -> tuple[list[Path], list[str]]:
    """Restore `source`, a file or a folder (recursive), into `output` as PNG under the same relative names.

    Two inputs whose names differ only in the extension keep it (`a.jpg.png`). A picture that cannot be read is
    skipped. With `side_by_side`, LQ | restored is written into `output/side_by_side`; with `equal_batches`, a batch
    that is not full is filled up with copies, as a compiled restorer would be compiled again for another size.

    Returns:
        the files written, and one message for each picture skipped.
    """
    if not source.exists():
        raise InputError(f"input {str(source)!r} does not exist; give an image or a folder of images")
    root, paths = (source, list_images(source)) if source.is_dir() else (source.parent, [source])
    targets = output_paths([path.relative_to(root) for path in paths], output)
    beside = {target: output / "side_by_side" / target.relative_to(output) for target in targets}
    taken = {path.resolve() for path in paths}
    for target in [*targets, *(beside.values() if side_by_side else ())]:
        if target.resolve() in taken:
            raise InputError(f"{str(target)!r} would overwrite an input or another output; choose another folder")
        taken.add(target.resolve())
    device = next(restorer.parameters()).device
    done: list[Path] = []
    skipped: list[str] = []
    waiting: list[tuple[Path, torch.Tensor]] = []
    batch_size = min(batch_size, len(paths))
    bar = tqdm(
        total=len(paths), desc="restore", unit=" images", dynamic_ncols=True, disable=len(paths) == 1,
        bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}]",
    )  # fmt: skip

    def flush() -> None:
        if not waiting:
            return
        lq = torch.stack([image for _, image in waiting])
        if equal_batches:
            lq = lq[torch.arange(batch_size) % len(lq)]
        restored = restorer(lq.to(device))[: len(waiting)].cpu()
        for (target, before), after in zip(waiting, restored, strict=True):
            write_image(after, target)
            if side_by_side:
                write_image(torch.cat([before, after], dim=2), beside[target])
            done.append(target)
        bar.update(len(waiting))
        waiting.clear()

    for path, target in zip(paths, targets, strict=True):
        try:
            waiting.append((target, read_image(path, restorer.resolution)))
        except InputError as error:
            if len(paths) == 1:
                raise
            skipped.append(str(error))
            bar.update()
        if len(waiting) == batch_size:
            flush()
    flush()
    bar.close()
    return done, skipped


def output_paths(names: list[Path], output: Path) -> list[Path]:
    """Return a distinct PNG path under `output` for each relative name."""
    plain = [name.with_name(name.stem + ".png") for name in names]
    full = [name.with_name(name.name + ".png") for name in names]
    uses = Counter(plain)
    chosen = [f if uses[p] > 1 else p for p, f in zip(plain, full, strict=True)]
    return [output / name for name in (chosen if len(set(chosen)) == len(names) else full)]
