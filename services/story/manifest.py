"""What the mesh must know of the story service."""

from mesh.manifest import ERASURE, INBOX, LIMITER, OUTBOX, Manifest

MANIFEST = Manifest(
    port=100,
    ports=34,
    database=True,
    workers=2,
    calls=("auth", LIMITER),
    keys=("cursor_key", "link_key"),
    takes={
        "story": ("StoryRequested",),
        # An inbox of its own: a story takes minutes to write, and the deletion of an account must not wait behind stories.
        "story-accounts": ("UserDeleted",),
    },
    kit_tables=(OUTBOX, INBOX, ERASURE),
    redis_keys=("progress", "stories"),
    private_settings=("OPENAI_", "WRITER", "MODEL_PATH", "STORIES_"),
    local_settings={
        "WRITER": "{writer}",
        "MODEL_PATH": "{model_path}",
        # High quotas: a local mesh has one user, who may be a test or a benchmark.
        "STORIES_UNFINISHED": "1000",
        "STORIES_A_DAY": "100000",
        "STORIES_BACKLOG": "10000",
    },
    # Set for the server as well as for the workers: the server refuses a language that the workers' writer does not write.
    container_settings={"WRITER": "composer"},
)
