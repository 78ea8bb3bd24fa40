// Threads that compute one step together: each runs the same function and they meet at barriers.
#pragma once
#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace pomona {

class Team {
  public:
    explicit Team(int size) : size_(size) {
        for (int index = 1; index < size; index++) threads_.emplace_back([this, index] { wait(index); });
    }
    ~Team() {
        {
            std::lock_guard<std::mutex> hold(mutex_);
            over_ = true;
            round_++;
        }
        wake_.notify_all();
        for (auto &thread : threads_) thread.join();
    }
    Team(const Team &) = delete;
    Team &operator=(const Team &) = delete;

    int size() const { return size_; }

    // Runs work(index) on every thread, the caller's being number 0, and returns when all are done.
    void run(const std::function<void(int)> &work) {
        if (size_ > 1) {
            {
                std::lock_guard<std::mutex> hold(mutex_);
                work_ = &work;
                round_++;
            }
            wake_.notify_all();
        }
        work(0);
        meet();
    }

    // Returns when every thread has come here. They spin for a moment, since the others are never far, then give way,
    // since a processor that is also used by others may not run them all at once.
    void meet() {
        if (size_ == 1) return;
        const unsigned mine = meeting_.load(std::memory_order_acquire);
        if (here_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
            here_.store(0, std::memory_order_relaxed);
            meeting_.store(mine + 1, std::memory_order_release);
            return;
        }
        for (int turn = 0; meeting_.load(std::memory_order_acquire) == mine; turn++)
            if (turn > SPINS) std::this_thread::yield();
    }

  private:
    static constexpr int SPINS = 4000;

    void wait(int index) {
        unsigned seen = 0;
        for (;;) {
            const std::function<void(int)> *work;
            {
                std::unique_lock<std::mutex> hold(mutex_);
                wake_.wait(hold, [&] { return round_ != seen; });
                if (over_) return;
                seen = round_;
                work = work_;
            }
            (*work)(index);
            meet();
        }
    }

    const int size_;
    std::vector<std::thread> threads_;
    std::mutex mutex_;
    std::condition_variable wake_;
    const std::function<void(int)> *work_ = nullptr;
    unsigned round_ = 0;
    bool over_ = false;
    std::atomic<int> here_{0};
    std::atomic<unsigned> meeting_{0};
};

}  // namespace pomona
