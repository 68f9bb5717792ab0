"""What the mesh must know of the story service."""

from mesh.manifest import ERASURE, INBOX, OUTBOX, Manifest

MANIFEST = Manifest(
    port=100,
    ports=34,
    database=True,
    workers=2,
    calls=("auth",),
    keys=("cursor_key",),
    takes={
        "story": ("StoryRequested",),
        # Stories take minutes each, and what happens to an account must not wait behind them.
        "story-accounts": ("UserDeleted",),
    },
    kit_tables=(OUTBOX, INBOX, ERASURE),
    redis_keys=("progress", "stories"),
    private_settings=("OPENAI_", "WRITER", "MODEL_PATH", "STORIES_"),
    local_settings={
        "WRITER": "{writer}",
        "MODEL_PATH": "{model_path}",
        # One machine has one person, and that may be a test or a benchmark.
        "STORIES_UNFINISHED": "1000",
        "STORIES_A_DAY": "100000",
        "STORIES_BACKLOG": "10000",
    },
    # The server is told the workers' writer: it refuses a language that the writer does not write.
    container_settings={"WRITER": "composer"},
    worker_container_settings={"OPENAI_BASE_URL": "", "OPENAI_API_KEY": "", "OPENAI_MODEL": "gpt-4o-mini"},
)
