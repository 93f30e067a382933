# The service of docs/serving.md, without TensorFlow.
#
#   docker build -t cmap-serve .
#   docker build -t cmap-serve:cuda --build-arg ACCELERATOR=cuda .
#   docker run -p 127.0.0.1:8000:8000 -v "$PWD/INDEX:/index:ro" -v "$PWD/runs/shop:/model:ro" \
#     -v /photos:/photos:ro cmap-serve
#
# The pictures are mounted where the index says that they are. The CUDA variant runs with --gpus all.

ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
# "cpu" or "cuda"; the packages of cuda bring its libraries, and the host has the driver.
ARG ACCELERATOR=cpu
# Further extras of setup.py, each with a comma in front, such as ",faiss".
ARG EXTRAS=""
WORKDIR /source
COPY setup.py pyproject.toml README.md ./
COPY cmap_jax cmap_jax
COPY configs configs
COPY input_pipeline input_pipeline
RUN python -m venv /opt/cmap
ENV PATH=/opt/cmap/bin:$PATH \
    CMAP_JAX_WITHOUT_TENSORFLOW=1
# What is installed is this folder, whose version is its own.
# hadolint ignore=DL3013
RUN case "${ACCELERATOR}" in \
      cpu) extras="serve,heif" ;; \
      cuda) extras="serve,heif,cuda" ;; \
      *) echo "ACCELERATOR is cpu or cuda, not ${ACCELERATOR}" >&2; exit 1 ;; \
    esac \
    && pip install --no-cache-dir ".[${extras}${EXTRAS}]"

FROM python:${PYTHON}-slim
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin cmap \
    && install --directory --owner=10001 --group=cmap /cache
COPY --from=build /opt/cmap /opt/cmap
# Compiled programs are kept in /cache: a volume there makes the next start faster.
ENV PATH=/opt/cmap/bin:$PATH \
    XDG_CACHE_HOME=/cache \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001
EXPOSE 8000
# It is ready once its programs are compiled, which takes minutes without a cache.
HEALTHCHECK --interval=15s --timeout=5s --start-period=10m --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["cmap", "serve"]
CMD ["/index", "--model", "/model", "--host", "0.0.0.0", "--port", "8000"]
