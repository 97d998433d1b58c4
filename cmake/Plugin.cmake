# SPDX-License-Identifier: MIT
# dbpool_plugin.so: core plus the uWSGI adapters, for exactly the uWSGI binary that is found here. uWSGI has no header
# of its own in a package: the binary prints the one that it was built with, and the -D flags decide its layout.
find_program(UWSGI NAMES uwsgi uwsgi-core REQUIRED)

execute_process(COMMAND ${UWSGI} --cflags OUTPUT_VARIABLE _cflags OUTPUT_STRIP_TRAILING_WHITESPACE
                ERROR_QUIET COMMAND_ERROR_IS_FATAL ANY)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${UWSGI})
separate_arguments(_cflags UNIX_COMMAND "${_cflags}")
set(_defines ${_cflags})
list(FILTER _defines INCLUDE REGEX "^-D")
set(_includes ${_cflags})
list(FILTER _includes INCLUDE REGEX "^-I/")
list(TRANSFORM _includes REPLACE "^-I" "")
set(UWSGI_PLUGIN_DIR lib/uwsgi/plugins)
if("${_cflags}" MATCHES "-DUWSGI_PLUGIN_DIR=\"([^\"]*)\"")
    set(UWSGI_PLUGIN_DIR ${CMAKE_MATCH_1})
endif()

set(_dot_h ${CMAKE_BINARY_DIR}/uwsgi/uwsgi.h)
file(MAKE_DIRECTORY ${CMAKE_BINARY_DIR}/uwsgi)
add_custom_command(OUTPUT ${_dot_h} COMMAND ${UWSGI} --dot-h > ${_dot_h} DEPENDS ${UWSGI} VERBATIM
                   COMMENT "Asking ${UWSGI} for its header")

add_library(dbpool_plugin MODULE ${DBPOOL_PLUGIN_SOURCES} ${_dot_h})
set_target_properties(dbpool_plugin PROPERTIES PREFIX "" LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR})
target_link_libraries(dbpool_plugin PRIVATE dbpool_core)
target_compile_options(dbpool_plugin PRIVATE ${_defines})
# SYSTEM: the host's header is not ours to keep free of warnings.
target_include_directories(dbpool_plugin SYSTEM PRIVATE ${CMAKE_BINARY_DIR}/uwsgi ${_includes})

# Debian's directory is below /usr; another prefix gets the same path below itself.
if(IS_ABSOLUTE "${UWSGI_PLUGIN_DIR}" AND CMAKE_INSTALL_PREFIX STREQUAL "/usr")
    cmake_path(RELATIVE_PATH UWSGI_PLUGIN_DIR BASE_DIRECTORY /usr OUTPUT_VARIABLE _plugin_dir)
else()
    set(_plugin_dir lib/uwsgi/plugins)
endif()
set(DBPOOL_PLUGIN_DESTINATION ${_plugin_dir} CACHE STRING "where the plugin is installed, below the prefix")
install(TARGETS dbpool_plugin LIBRARY DESTINATION ${DBPOOL_PLUGIN_DESTINATION})
