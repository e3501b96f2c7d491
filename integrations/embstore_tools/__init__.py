"""embstore in the caches of other tools. Each module needs the library that it is named after, and no other.

- `embstore_tools.sentence_transformers.CachedSentenceTransformer`: `encode` that loads a model only for missing texts.
- `embstore_tools.langchain.VectorCache`: the store of LangChain's `CacheBackedEmbeddings`.
- `embstore_tools.llama_index.VectorCache`: the `embeddings_cache` of LlamaIndex.
- `embstore_tools.mteb.VectorCache`: the cache backend of MTEB's `CachedEmbeddingWrapper`.

Texts have no ids here. Their rows lie in a store of a cache by content: see `embstore.pipeline.by_content`.
"""
