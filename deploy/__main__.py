"""Usage: python -m deploy render            writes docker-compose.yml from the manifests
python -m deploy render --check    fails if it is not what the manifests say
python -m deploy keys FOLDER       adds the secrets that are missing in FOLDER
python -m deploy stores FOLDER     gives Postgres and Redis the roles, databases and users that they lack
"""

import asyncio
import sys
from pathlib import Path

from deploy import compose, keys
from mesh.catalog import manifests

COMPOSE = Path(__file__).parents[1] / "docker-compose.yml"


def main(arguments: list[str]) -> None:
    match arguments:
        case ["render"]:
            COMPOSE.write_text(compose.rendered())
        case ["render", "--check"]:
            if COMPOSE.read_text() != compose.rendered():
                sys.exit(f"{COMPOSE.name} is not what the manifests say; run: make deploy")
        case ["keys", folder]:
            keys.make(Path(folder), manifests())
        case ["stores", folder]:
            asyncio.run(keys.apply(Path(folder), manifests()))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
