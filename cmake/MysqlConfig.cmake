# SPDX-License-Identifier: MIT
# Where pkg-config does not know libmariadb: whatever client library mysql_config names, as PkgConfig::MARIADB.
find_program(MYSQL_CONFIG NAMES mariadb_config mysql_config REQUIRED)
execute_process(COMMAND ${MYSQL_CONFIG} --include OUTPUT_VARIABLE _include OUTPUT_STRIP_TRAILING_WHITESPACE
                COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${MYSQL_CONFIG} --libs OUTPUT_VARIABLE _libs OUTPUT_STRIP_TRAILING_WHITESPACE
                COMMAND_ERROR_IS_FATAL ANY)
separate_arguments(_include UNIX_COMMAND "${_include}")
separate_arguments(_libs UNIX_COMMAND "${_libs}")
list(TRANSFORM _include REPLACE "^-I" "")
add_library(PkgConfig::MARIADB INTERFACE IMPORTED)
target_include_directories(PkgConfig::MARIADB INTERFACE ${_include})
target_link_libraries(PkgConfig::MARIADB INTERFACE ${_libs})
