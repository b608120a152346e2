"""docs/RESULTS.md: the ablation on valid and its confirmation on test, from their two JSON files and nothing else."""

from typing import Any

from saeexplainer.study import ablation as study_ablation
from saeexplainer.study import confirmation as study_confirmation

HOW = """\
```
make study WITH="--plan ablation"    # conf/ablation.yaml: one change at a time, on valid
make study                           # conf/study.yaml: the seeds, on test; docs/STUDY.md too
```

One variant alone: `sae-explainer study --plan ablation --only NAME`. Any product of settings as plain DVC
experiments, from the last commit: `dvc exp run --queue -S 'reward=discriminative,mean' -S seed=0,1`, then
`dvc queue start` and `dvc exp show` ([DATA.md](DATA.md)); add `-S evaluate.split=valid` while choosing. Those are
compared by their means alone, without paired intervals."""


def page(ablation: dict[str, Any], confirmation: dict[str, Any]) -> str:
    """docs/RESULTS.md."""
    resamples = sorted({ablation["resamples"], confirmation["resamples"]})
    written = (
        "What helped, what did not, and what is left of it on features and seeds that no choice saw. Settings are "
        "chosen on valid and reported on test. Written by `sae-explainer study`; the same figures are in "
        "ablation.json and confirmation.json. Every figure is times 100: percent for shares, percentage points for "
        "differences; AUC, correlation and F1 likewise. In brackets the 95 % bootstrap interval over features "
        f"({' and '.join(f'{count:,}' for count in resamples)} resamples), differences paired by feature and "
        "resampled inside each seed. Bold: the interval leaves zero out; ↑ higher is better, ↓ lower."
    )
    sections = [
        "<!-- Written by `sae-explainer study`; what is edited here is lost. -->",
        "# Results",
        written,
        HOW,
        *study_ablation.sections(ablation),
        *study_confirmation.sections(confirmation),
    ]
    return "\n\n".join(sections) + "\n"
