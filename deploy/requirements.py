"""Print what pyproject.toml needs to be built and to run, with extras: requirements.py pyproject.toml quantization"""

import sys
import tomllib
from pathlib import Path

path, *extras = sys.argv[1:]
said = tomllib.loads(Path(path).read_text(encoding="utf-8"))
wanted = [said["project"]["dependencies"], *(said["project"]["optional-dependencies"][extra] for extra in extras)]
print(*said["build-system"]["requires"], *(line for lines in wanted for line in lines), sep="\n")
