# SPDX-License-Identifier: MIT
# The plugin's C sources, as uwsgiplugin.py lists them, into DBPOOL_CORE_SOURCES and DBPOOL_PLUGIN_SOURCES. A file that
# lies in core/ or plugin/ and is not listed would be missing from both builds: refused here.
set(_print "import runpy, sys; print(';'.join(n + '.c' for n in runpy.run_path(sys.argv[1])['GCC_LIST']))")
execute_process(COMMAND ${Python3_EXECUTABLE} -c "${_print}" ${CMAKE_CURRENT_SOURCE_DIR}/uwsgiplugin.py
                OUTPUT_VARIABLE _listed OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS uwsgiplugin.py)

set(_unique ${_listed})
list(REMOVE_DUPLICATES _unique)
if(NOT _unique STREQUAL _listed)
    message(FATAL_ERROR "GCC_LIST of uwsgiplugin.py names a file twice")
endif()

file(GLOB _present RELATIVE ${CMAKE_CURRENT_SOURCE_DIR} CONFIGURE_DEPENDS core/*.c plugin/*.c)
foreach(_file IN LISTS _present)
    if(NOT _file IN_LIST _listed)
        message(FATAL_ERROR "${_file} is not in GCC_LIST of uwsgiplugin.py")
    endif()
endforeach()

set(DBPOOL_CORE_SOURCES)
set(DBPOOL_PLUGIN_SOURCES)
foreach(_file IN LISTS _listed)
    if(_file MATCHES "^core/")
        list(APPEND DBPOOL_CORE_SOURCES ${_file})
    else()
        list(APPEND DBPOOL_PLUGIN_SOURCES ${_file})
    endif()
endforeach()
