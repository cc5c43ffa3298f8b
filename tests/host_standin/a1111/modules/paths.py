"""Where the host keeps things; --data-dir and --models-dir come as environment variables."""

from __future__ import annotations

import os

data_path = os.environ["STANDIN_DATA_DIR"]
script_path = data_path
models_path = os.environ.get("STANDIN_MODELS_DIR") or os.path.join(data_path, "models")
