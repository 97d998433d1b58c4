-- SPDX-License-Identifier: MIT
-- wrk: collects "ms" of each answer and prints all of them in one line.
waits = {}
local threads = {}

function setup(thread)
    threads[#threads + 1] = thread
end

function response(status, headers, body)
    waits[#waits + 1] = tonumber(body:match('"ms":%s*([%d.e+-]+)'))
end

function done()
    local all = {'VALUES'}
    for _, thread in ipairs(threads) do
        for _, ms in ipairs(thread:get('waits')) do
            all[#all + 1] = string.format('%.4f', ms)
        end
    end
    print(table.concat(all, ' '))
end
