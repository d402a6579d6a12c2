# Read by cmake when it configures llama.cpp: which source files are compiled as one.
#
# llama.cpp, its server and what lies between are some 200 files that read the same headers and make
# the same templates, each for itself. A group is compiled as one file (cmake's unity build), with
# the flags its files have anyway: less work, the same programs. A file in no group is compiled on
# its own. ggml, which computes, is not touched.
#
# A group takes up to 40 s: with larger ones, cores would wait at the end.

function(join target group)
  get_target_property(folder ${target} SOURCE_DIR)
  list(TRANSFORM ARGN PREPEND "${folder}/")
  file(GLOB files ${ARGN})
  # llama.cpp itself joins its models and keeps the rest of its library apart.
  set_source_files_properties(${files} TARGET_DIRECTORY ${target}
    PROPERTIES UNITY_GROUP ${group} SKIP_UNITY_BUILD_INCLUSION OFF)
  set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_MODE GROUP)
endfunction()

function(join_all)
  # What uses <regex> stands together: each of these alone spends 7 s on its templates.
  join(llama regex_a llama-model.cpp llama-model-loader.cpp llama-quant.cpp)
  join(llama regex_b llama-grammar.cpp llama-sampler.cpp unicode.cpp unicode-data.cpp)
  join(llama graph llama-context.cpp llama-graph.cpp llama-batch.cpp llama-adapter.cpp)
  join(llama vocabulary llama-vocab.cpp llama-arch.cpp llama-chat.cpp llama-impl.cpp llama-io.cpp
    llama-mmap.cpp llama-cparams.cpp llama-hparams.cpp llama-model-saver.cpp llama.cpp)
  join(llama caches llama-kv-cache*.cpp llama-memory*.cpp)
  join(llama models_a models/[a-c]*.cpp)
  join(llama models_d models/[d-f]*.cpp)
  join(llama models_g models/[g-k]*.cpp)
  join(llama models_l models/[l-o]*.cpp)
  join(llama models_p models/[p-z]*.cpp)

  join(llama-common regex_a arg.cpp preset.cpp download.cpp hf-cache.cpp)
  join(llama-common regex_b common.cpp debug.cpp peg-parser.cpp chat-peg-parser.cpp
    json-schema-to-grammar.cpp)
  join(llama-common chat chat.cpp chat-auto*.cpp chat-diff*.cpp)
  join(llama-common parsers parsers/*.cpp)
  join(llama-common jinja jinja/*.cpp)
  join(llama-common sampling sampling.cpp speculative.cpp ngram*.cpp log.cpp reasoning-budget.cpp
    imatrix-loader.cpp fit.cpp llguidance.cpp console.cpp subproc.cpp json-schema.cpp trie.cpp
    unicode.cpp)

  # mtmd-helper*.cpp refuse the headers of the rest, so they stay on their own.
  join(mtmd library mtmd.cpp mtmd-audio.cpp mtmd-image.cpp clip.cpp)
  join(mtmd models_a models/[a-l]*.cpp)
  join(mtmd models_m models/[m-z]*.cpp)

  join(server-context tasks server-chat.cpp server-task.cpp server-common.cpp server-schema.cpp)
  join(server-context queue server-queue.cpp server-stream.cpp server-tools.cpp server-mcp.cpp)
  join(llama-server-impl server server.cpp server-http.cpp server-models.cpp)
endfunction()

# Now the folder's targets are not there yet; at the end of it they are.
cmake_language(DEFER CALL join_all)
