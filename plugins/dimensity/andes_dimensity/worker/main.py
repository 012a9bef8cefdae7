"""What runs in the environment of LiteRT: `python main.py JOB`, with a job's `job.json` -> its `result.json`.

Nothing of andes_sdk is imported here, and nothing of LiteRT there.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")


def tell(text: str) -> None:
    """A line of progress, which the other process shows."""
    print(f"@ {text}", flush=True)


def main(folder: Path) -> int:
    """Do the job; what went wrong stands in the result too."""
    job: dict[str, Any] = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    started = time.time()
    try:
        if job["do"] == "export":
            from export import export

            result = export(folder, job, tell)
        elif job["do"] == "run":
            from running import run

            result = run(folder, job)
        elif job["do"] == "unpack":
            from bundling import unpack

            result = unpack(Path(job["file"]), folder / "unpacked")
        elif job["do"] == "logits":
            from static import logits

            result = logits(folder, job)
        elif job["do"] == "scales":
            from static import scales

            result = scales(folder, job)
        elif job["do"] == "lora":
            from lora import written

            result = written(folder, job)
        elif job["do"] == "left":
            from left import left

            result = {"left": left(Path(job["source"]), Path(job["file"]), job["graphs"])}
        elif job["do"] == "compare":
            from bundling import compared

            result = compared(folder, job)
        elif job["do"] == "chat":
            from running import chat

            result = chat(folder, job, tell)
        else:
            raise ValueError(f"no such work: {job['do']!r}")
    except Exception as error:
        traceback.print_exc()
        result = {"error": f"{type(error).__name__}: {error}"}
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF)
    result |= {"seconds": time.time() - started, "cpu_seconds": used.ru_utime + used.ru_stime}
    result["peak_bytes"] = used.ru_maxrss * 1024
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return "error" in result


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # libraries of the runtime may hang when they are torn down
