# SPDX-License-Identifier: MIT
# Makes the .py files below TO the same as those below FROM: changed ones are copied, vanished ones removed.
file(GLOB_RECURSE _there RELATIVE ${TO} ${TO}/*.py)
foreach(_file IN LISTS _there)
    if(NOT EXISTS ${FROM}/${_file})
        file(REMOVE ${TO}/${_file})
    endif()
endforeach()
file(COPY ${FROM}/ DESTINATION ${TO} FILES_MATCHING PATTERN "*.py" PATTERN __pycache__ EXCLUDE)
