"""What an upload costs by signed requests, beside a FastAPI service that the bytes pass through, and what thumbnails cost."""
