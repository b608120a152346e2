"""A folder of packages that holds some distributions and what they need, of those installed here, and no others."""

import re
from importlib import metadata
from pathlib import Path


def installed_alone(names: list[str], site: Path) -> Path:
    """Fill `site` with links to the distributions of these names (requirements are welcome) and to what they need."""
    site.mkdir()
    found: set[str] = set()
    while names:
        name = re.match(r"[\w.-]+", names.pop())[0].lower().replace("_", "-")
        if name in found:
            continue
        found.add(name)
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # of another platform
            continue
        names += [line for line in distribution.requires or [] if "extra ==" not in line]
        for top in {file.parts[0] for file in distribution.files or []} - {".."}:
            place = site / top
            if not place.exists() and not top.endswith(".pth"):
                place.symlink_to(Path(distribution.locate_file(top)))
    return site
