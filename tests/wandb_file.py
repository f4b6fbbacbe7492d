"""What wandb wrote offline, read back from its own files."""

import json
import struct


def read_run(folder):
    """Return the rows of history of all starts of a run, in order, and wandb's records of the run itself."""
    from wandb.proto import wandb_internal_pb2

    history, runs = [], []
    for started in sorted((folder / "wandb").glob("offline-run-*"), key=lambda each: each.name):
        (path,) = started.glob("*.wandb")
        for data in wandb_records(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "run":
                runs.append(record.run)
            elif record.WhichOneof("record_type") == "history":
                items = {
                    (item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item
                }
                history.append(items)
    return history, runs


def wandb_records(data):
    """The records of a .wandb file: a header of 7 bytes, then LevelDB's log format, in blocks of 32 KiB."""
    place, whole, block = 7, b"", 1 << 15
    while place + 7 <= len(data):
        if (left := block - place % block) < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)  # checksum, bytes, part of a record
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield whole
            whole = b""


def images(line):
    """The keys of a row's images, whose value is a record, nested or not."""
    whole = {key for key, value in line.items() if isinstance(value, dict) and value.get("_type") == "image-file"}
    return whole | {key.removesuffix("/_type") for key, value in line.items() if value == "image-file"}
