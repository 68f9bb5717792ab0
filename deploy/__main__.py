"""Usage: python -m deploy render            writes docker-compose.yml from the manifests
python -m deploy render --check    fails if it is not up to date
python -m deploy keys FOLDER       adds the secrets that are missing in FOLDER
python -m deploy stores FOLDER [--origins LIST]
                                   adds the roles, databases, users and buckets that are missing in Postgres, Redis and the
                                   object store; pages on these origins, separated by commas, may use its signed addresses
"""

import asyncio
import sys
from pathlib import Path

from deploy import buckets, compose, keys
from mesh.catalog import manifests

COMPOSE = Path(__file__).parents[1] / "docker-compose.yml"


def main(arguments: list[str]) -> None:
    match arguments:
        case [*_, "--help" | "-h"]:
            print(__doc__)
        case ["render"]:
            COMPOSE.write_text(compose.rendered())
        case ["render", "--check"]:
            if COMPOSE.read_text() != compose.rendered():
                sys.exit(f"{COMPOSE.name} is not what the manifests say; run: make deploy")
        case ["keys", folder]:
            keys.make(Path(folder), manifests())
        case ["stores", folder]:
            _stores(Path(folder), "")
        case ["stores", folder, "--origins", origins]:
            _stores(Path(folder), origins)
        case _:
            sys.exit(__doc__)


def _stores(folder: Path, origins: str) -> None:
    from psycopg import Error as PostgresError
    from redis import RedisError

    try:
        asyncio.run(keys.apply(folder, manifests(), origins=buckets.listed(origins)))
    except FileNotFoundError as error:
        sys.exit(f"{error.filename} is missing: run `python -m deploy keys {folder}` first")
    except PostgresError as error:
        sys.exit(f"Postgres does not take the services' roles and databases: {str(error).strip()}")
    except RedisError as error:
        sys.exit(f"Redis does not read its access control list again: {error}")
    except buckets.BucketsFailed as error:
        sys.exit(f"The services' buckets cannot be made: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
