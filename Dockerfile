# One image for every process of the mesh; the command selects the process.
FROM python:3.13-slim AS build
RUN pip install --no-cache-dir uv==0.13.9
WORKDIR /storymesh
COPY pyproject.toml uv.lock ./
COPY clients/python/pyproject.toml clients/python/
RUN uv export --quiet --frozen --no-emit-project --no-default-groups --group edge --group objects --extra openai --extra native \
    --format requirements.txt > /requirements.txt \
 && uv venv --quiet /venv \
 && uv pip install --quiet --compile-bytecode --python /venv/bin/python --require-hashes -r /requirements.txt

FROM python:3.13-slim
ENV PATH=/venv/bin:$PATH PYTHONPATH=/storymesh:/storymesh/gen:/storymesh/envoy PYTHONUNBUFFERED=1
WORKDIR /storymesh
COPY --from=build /venv /venv
COPY gen gen
COPY envoy envoy
COPY kit kit
COPY mesh mesh
COPY services services
COPY deploy deploy
# What a new volume takes its owner from.
RUN install -d -o 10001 -g 10001 /objects
# A numeric user, because an orchestrator cannot tell by a name that it is not root.
USER 10001:10001
