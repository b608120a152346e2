"""One module a stage: `run(params) -> Report` is the body that DVC executes as `python -m tasks.<stage>`.

The environment is settled here because this file runs before any library of a stage reads it; what the user has set
already wins.
"""

import os

_ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "TOKENIZERS_PARALLELISM": "false",  # processes are forked after tokenizers have threads
}

for _name, _value in _ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)
