# cmake -DNM=<nm> -DOBJECTS=<a.o;b.o> -DISA=isa_avx2 -P check_weak.cmake
#
# The linker keeps one copy of a weak function (an inline function or a template instance). If an
# instruction set's object held one whose name does not carry the instruction set, that copy could
# serve everybody, and a plain CPU would meet AVX-512 code. So each weak function's mangled name
# must contain the namespace of its instruction set.
set(shared "")
foreach(object IN LISTS OBJECTS)
  execute_process(COMMAND ${NM} --defined-only ${object} OUTPUT_VARIABLE symbols
                  COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCHALL "[0-9a-f]+ W [^\n]+" weak "${symbols}")
  list(FILTER weak EXCLUDE REGEX ${ISA})
  foreach(symbol IN LISTS weak)
    string(REGEX REPLACE ".* W " "" symbol "${symbol}")
    get_filename_component(file ${object} NAME)
    string(APPEND shared "\n  ${file}: ${symbol}")
  endforeach()
endforeach()
if(shared)
  message(FATAL_ERROR "weak functions compiled for ${ISA} that others may be given:${shared}")
endif()
