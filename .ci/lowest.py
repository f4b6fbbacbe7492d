"""Print pip constraints that hold every direct dependency of pyproject.toml at its lower bound."""

import re
import tomllib
from itertools import chain
from pathlib import Path

project = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text(encoding="utf-8"))["project"]
wanted = chain(project["dependencies"], *project["optional-dependencies"].values())
bounds = filter(None, (re.match(r"([\w.-]+)>=([\d.]+)", line) for line in wanted))
# of 4.13 any fourth number, as 4.13.0.92
print(
    *sorted(
        {f"{name}=={version if '.' in version else version + '.0'}.*" for name, version in map(re.Match.groups, bounds)}
    ),
    sep="\n",
)
