# docker build --tag alignsum .                                     CPU
# docker build --tag alignsum --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 .
FROM python:3.11-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /opt/alignsum
COPY requirements.lock ./
# torch first, from the index of the device; the lock then finds its version installed.
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" "$(grep -m1 '^torch==' requirements.lock)" \
    && pip install --no-cache-dir -r requirements.lock
COPY . .
RUN pip install --no-cache-dir --no-deps .
WORKDIR /work
ENTRYPOINT ["python", "-m", "alignsum"]
