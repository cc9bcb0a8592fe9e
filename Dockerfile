# The package with its commands, for CPUs:   docker build -t i2sb .
# For NVIDIA GPUs:                           docker build -t i2sb --build-arg TORCH=https://download.pytorch.org/whl/cu126 .
FROM python:3.12-slim

# Where torch and torchvision come from: the wheels for CPUs are a tenth of the others.
ARG TORCH=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir --index-url "$TORCH" torch torchvision

# What is needed changes less often than the package: its layer is kept.
COPY requirements.txt /source/
COPY scripts/requirements-*.txt /source/scripts/
RUN pip install --no-cache-dir -r /source/requirements.txt -r /source/scripts/requirements-scoring.txt \
    -r /source/scripts/requirements-arrays.txt -r /source/scripts/requirements-hub.txt

COPY pyproject.toml README.md LICENSE /source/
COPY tests/requirements.txt /source/tests/
COPY i2sb /source/i2sb
COPY corruption /source/corruption
RUN pip install --no-cache-dir --no-deps /source

RUN useradd --create-home --uid 1000 i2sb && mkdir -p /home/i2sb/data /home/i2sb/results && chown -R i2sb /home/i2sb
USER 1000
WORKDIR /home/i2sb
VOLUME ["/home/i2sb/data", "/home/i2sb/results"]
CMD ["i2sb-sample", "--help"]
