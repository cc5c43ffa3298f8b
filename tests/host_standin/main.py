"""A host process of its own: starts, starts a job, says its id, and goes on until it is killed."""

from __future__ import annotations

import os
import sys
import time

from dreambooth_core.config.schema import SampleConfig
from dreambooth_core.host.base import current_host
from dreambooth_core.host.conductor import conductor
from dreambooth_core.job import launcher
from dreambooth_core.job.interpreter import WorkerPython
from tests.host_standin import Webui
from tests.host_standin.quiet import replacements

if __name__ == "__main__":
    launcher.WORKER_MODULE = "tests.host_standin.worker"
    sys.modules.update(replacements())
    webui = Webui("a1111", os.environ)
    webui.start()
    host = current_host()
    host.overlay, host.worker = lambda: None, WorkerPython
    job = conductor().start("sample", SampleConfig(model="ada", prompts=[sys.argv[1]]))
    sys.stdout.write(f"{job.run_id}\n")
    sys.stdout.flush()
    time.sleep(120)
