# A guided, OpenAI-compatible server for a host with NVIDIA GPUs:
#   docker build -f docker/serve.Dockerfile -t textguide-serve .
#   docker run --gpus all --ipc=host -p 8000:8000 textguide-serve MODEL [options of vllm serve]
FROM vllm/vllm-openai:v0.32.0

WORKDIR /opt/textguide
COPY pyproject.toml README.md LICENSE ./
COPY textguide textguide
COPY logits_processors logits_processors
COPY tasks tasks
COPY eval eval
# The image carries vLLM, torch and transformers; they stay as they are.
RUN pip install --no-cache-dir --no-deps . && pip install --no-cache-dir platformdirs rich filelock

EXPOSE 8000
ENTRYPOINT ["textguide", "serve"]
CMD ["--help"]
