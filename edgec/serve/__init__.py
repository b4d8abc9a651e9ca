"""An OpenAI-compatible server on starlette and uvicorn (extra `serve`)."""
