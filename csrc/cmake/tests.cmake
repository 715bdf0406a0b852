# Each tests/*_test.cpp becomes a program per instruction set, and ctest runs it: the math headers
# round otherwise with FMA, and vectorise otherwise. A CPU that lacks the set skips the program.
file(GLOB test_sources CONFIGURE_DEPENDS tests/*_test.cpp)
foreach(source IN LISTS test_sources)
  get_filename_component(name ${source} NAME_WE)
  foreach(isa IN LISTS isas)
    # An object library, as the guard must not be compiled for the set that it looks for.
    add_library(${name}_${isa}_objects OBJECT ${source})
    target_compile_definitions(${name}_${isa}_objects PRIVATE VAEFAST_ISA=isa_${isa})
    target_compile_options(${name}_${isa}_objects PRIVATE ${flags_${isa}})
    target_link_libraries(${name}_${isa}_objects PRIVATE vaefast_flags)

    add_executable(${name}_${isa} tests/require_isa.cpp)
    target_compile_definitions(${name}_${isa} PRIVATE REQUIRED_ISA="${isa}")
    target_link_libraries(${name}_${isa} PRIVATE ${name}_${isa}_objects vaefast_native)
    add_test(NAME ${name}_${isa} COMMAND ${name}_${isa})
    set_tests_properties(${name}_${isa} PROPERTIES SKIP_RETURN_CODE 77
                         ENVIRONMENT VAEFAST_CPU_CAPABILITY=${isa})
  endforeach()
endforeach()

# Only in the build that users get: sanitizers and -O0 leave the standard library's templates
# out of line.
if(CMAKE_BUILD_TYPE STREQUAL "Release" AND NOT VAEFAST_SANITIZE AND CMAKE_NM)
  foreach(isa IN LISTS isas)
    if(cpu_sources AND NOT isa STREQUAL "default")
      add_test(NAME no_shared_weak_${isa}
               COMMAND ${CMAKE_COMMAND} -DNM=${CMAKE_NM} -DISA=isa_${isa}
                       "-DOBJECTS=$<TARGET_OBJECTS:vaefast_cpu_${isa}>"
                       -P ${CMAKE_CURRENT_LIST_DIR}/check_weak.cmake)
    endif()
  endforeach()
endif()
