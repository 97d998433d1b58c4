# SPDX-License-Identifier: MIT
# The Python package with its extension _dbpool, complete in build/python: PYTHONPATH=build/python runs it in place.
set(_package ${CMAKE_CURRENT_SOURCE_DIR}/plugin/python/dbpool)
set(_built ${CMAKE_BINARY_DIR}/python/dbpool)

# setup.py takes the same files by the same rule, whatever lies in src/.
file(GLOB _sources CONFIGURE_DEPENDS plugin/python/src/*.c)
Python3_add_library(_dbpool MODULE WITH_SOABI ${_sources})
set_target_properties(_dbpool PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${_built})
target_link_libraries(_dbpool PRIVATE dbpool_warnings Threads::Threads ${CMAKE_DL_LIBS})
target_include_directories(_dbpool SYSTEM PRIVATE ${Python3_INCLUDE_DIRS})
install(TARGETS _dbpool LIBRARY DESTINATION lib/python3/dist-packages/dbpool)

add_custom_target(dbpool_package ALL
    COMMAND ${CMAKE_COMMAND} -DFROM=${_package} -DTO=${_built} -P ${CMAKE_CURRENT_SOURCE_DIR}/cmake/CopyPackage.cmake
    VERBATIM)
install(DIRECTORY ${_package} DESTINATION lib/python3/dist-packages
        FILES_MATCHING PATTERN "*.py" PATTERN __pycache__ EXCLUDE)
