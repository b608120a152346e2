"""Where the stages put what they make, relative to the workspace; the commands read it from the same places."""

from pathlib import Path

SUBJECT = Path("data/subject")
SAES = Path("data/saes")
SITE = Path("data/site.json")  # that the SAEs read
ACTIVATIONS = Path("data/activations")
PROBES = Path("data/probes")
LABELS = Path("data/labels.parquet")
WARMUP = Path("data/warmup")
EXPLAINERS = Path("data/explainers")
ROUNDS = Path("data/rounds")
EVALUATIONS = Path("data/evaluations")
IMPORTED = Path("data/imported")
REPORTS = Path("reports")
REPORT = Path("reports/report.html")
DATA_DOCS = Path("reports/data_docs")
COMPARISON = Path("reports/comparison.json")
COSTS = Path("reports/costs.json")
PARAMS = Path("params.yaml")
