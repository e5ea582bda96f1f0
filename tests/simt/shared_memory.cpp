#include "simt/shared_memory.h"

#include <bit>
#include <cstring>

namespace simt {
namespace {

constexpr int kWarp = 32;

std::string thread_name(int thread) {
  return "thread " + std::to_string(thread) + " (warp " + std::to_string(thread / kWarp) +
         ", lane " + std::to_string(thread % kWarp) + ")";
}

}  // namespace

void SharedShadow::begin_block(int bytes, bool detect) {
  bytes_ = bytes;
  detect_ = detect;
  data_.resize(size_t(bytes));
  cells_.resize(size_t(bytes + kGranule - 1) / kGranule);
  ++block_;
  ++epoch_;
}

SharedShadow::Cell& SharedShadow::cell(uint32_t index) {
  Cell& cell = cells_[index];
  if (cell.block != block_) {
    cell = {};
    cell.block = block_;
  }
  return cell;
}

std::optional<SharedShadow::Problem> SharedShadow::check_range(uint32_t address, int bytes) const {
  const bool inside = uint64_t(address) + uint64_t(bytes) <= uint64_t(bytes_);
  if (inside && address % uint32_t(bytes) == 0) return std::nullopt;
  const std::string place = std::to_string(bytes) + " bytes at " + std::to_string(int32_t(address));
  if (inside) return Problem{Fault::kMisaligned, place + " of shared memory", -1};
  return Problem{Fault::kOutOfBounds,
                 place + " of " + std::to_string(bytes_) + " bytes of shared memory", -1};
}

std::optional<SharedShadow::Problem> SharedShadow::read_cell(uint32_t address, const Actor& actor) {
  Cell& c = cell(address / kGranule);
  const int warp = actor.thread / kWarp;
  std::optional<Problem> problem;
  const auto report = [&](Fault fault, const std::string& what, int site) {
    problem = Problem{
        fault, thread_name(actor.thread) + " reads shared byte " + std::to_string(address) + what,
        site};
  };
  if (c.copies > 0) {
    report(Fault::kPendingCopy,
           ", into which " + thread_name(c.writer) + " copies, before it waits", c.write_site);
  } else if (!c.written) {
    report(Fault::kUninitialised, ", which nobody wrote", -1);
  } else if (c.write_epoch == epoch_ && c.writer != actor.thread &&
             (c.writer / kWarp != warp || c.write_syncs == actor.warp_syncs)) {
    report(Fault::kRace, ", written by " + thread_name(c.writer) + " since the last barrier",
           c.write_site);
  }
  if (c.read_epoch != epoch_) {
    c.read_epoch = epoch_;
    c.reader_warps = 0;
    c.several_readers = false;
  }
  // The last reader stands for its warp; of other warps it is only known that they read.
  const bool same_warp = c.reader_warps != 0 && c.reader / kWarp == warp;
  c.several_readers = same_warp && c.read_syncs == actor.warp_syncs &&
                      (c.several_readers || c.reader != actor.thread);
  c.reader_warps |= 1u << warp;
  c.reader = int16_t(actor.thread);
  c.read_syncs = actor.warp_syncs;
  c.read_site = uint16_t(actor.site);
  return problem;
}

std::optional<SharedShadow::Problem> SharedShadow::read(void* value, uint32_t address, int bytes,
                                                        const Actor& actor) {
  if (auto problem = check_range(address, bytes)) {
    std::memset(value, 0xff, size_t(bytes));
    return problem;
  }
  std::memcpy(value, &data_[address], size_t(bytes));
  std::optional<Problem> problem;
  for (uint32_t at = address; detect_ && at < address + uint32_t(bytes); at += kGranule) {
    auto here = read_cell(at, actor);
    if (here && !problem) problem = std::move(here);
  }
  return problem;
}

std::optional<SharedShadow::Problem> SharedShadow::read_row(uint16_t (&row)[8], uint32_t address,
                                                            const int (&threads)[8],
                                                            const Actor& actor) {
  if (auto problem = check_range(address, int(sizeof row))) {
    std::memset(row, 0xff, sizeof row);
    return problem;
  }
  std::memcpy(row, &data_[address], sizeof row);
  std::optional<Problem> problem;
  for (int i = 0; detect_ && i < 8; ++i) {
    auto here =
        read_cell(address + uint32_t(i * kGranule), {threads[i], actor.warp_syncs, actor.site});
    if (here && !problem) problem = std::move(here);
  }
  return problem;
}

std::optional<SharedShadow::Problem> SharedShadow::check_write(const Cell& c, uint32_t address,
                                                               const Actor& actor) const {
  const int warp = actor.thread / kWarp;
  const auto report = [&](Fault fault, const std::string& what, int site) {
    return Problem{
        fault, thread_name(actor.thread) + " writes shared byte " + std::to_string(address) + what,
        site};
  };
  if (c.copies > 0) {
    return report(Fault::kPendingCopy,
                  ", into which " + thread_name(c.writer) + " copies, before it waits",
                  c.write_site);
  }
  if (c.written && c.write_epoch == epoch_ && c.writer != actor.thread &&
      (c.writer / kWarp != warp || c.write_syncs == actor.warp_syncs)) {
    return report(Fault::kRace, ", written by " + thread_name(c.writer) + " since the last barrier",
                  c.write_site);
  }
  if (c.read_epoch != epoch_ || c.reader_warps == 0) return std::nullopt;
  const uint32_t others = c.reader_warps & ~(1u << warp);
  if (others != 0) {
    const bool known = c.reader / kWarp != warp;
    const std::string who =
        known ? thread_name(c.reader) : "warp " + std::to_string(std::countr_zero(others));
    return report(Fault::kRace, ", read by " + who + " since the last barrier",
                  known ? c.read_site : -1);
  }
  if (c.read_syncs == actor.warp_syncs && (c.several_readers || c.reader != actor.thread)) {
    const std::string who = c.reader != actor.thread ? thread_name(c.reader) : "another lane";
    return report(Fault::kRace, ", read by " + who + " with no sync_warp in between", c.read_site);
  }
  return std::nullopt;
}

void SharedShadow::note_write(Cell& c, const Actor& actor) const {
  c.written = true;
  c.write_epoch = epoch_;
  c.write_syncs = actor.warp_syncs;
  c.writer = int16_t(actor.thread);
  c.write_site = uint16_t(actor.site);
}

std::optional<SharedShadow::Problem> SharedShadow::write(uint32_t address, const void* value,
                                                         int bytes, const Actor& actor) {
  if (auto problem = check_range(address, bytes)) return problem;
  std::memcpy(&data_[address], value, size_t(bytes));
  std::optional<Problem> problem;
  for (uint32_t at = address; detect_ && at < address + uint32_t(bytes); at += kGranule) {
    Cell& c = cell(at / kGranule);
    if (!problem) problem = check_write(c, at, actor);
    note_write(c, actor);
  }
  return problem;
}

std::optional<SharedShadow::Problem> SharedShadow::begin_copy(uint32_t address,
                                                              const Actor& actor) {
  constexpr int kBytes = 16;
  if (auto problem = check_range(address, kBytes)) return problem;
  std::memset(&data_[address], 0xff, kBytes);
  std::optional<Problem> problem;
  for (uint32_t at = address; detect_ && at < address + kBytes; at += kGranule) {
    Cell& c = cell(at / kGranule);
    if (!problem) problem = check_write(c, at, actor);
    note_write(c, actor);
    ++c.copies;
  }
  return problem;
}

void SharedShadow::end_copy(uint32_t address, const void* value, const Actor& actor) {
  constexpr int kBytes = 16;
  if (check_range(address, kBytes)) return;
  std::memcpy(&data_[address], value, kBytes);
  for (uint32_t at = address; detect_ && at < address + kBytes; at += kGranule) {
    Cell& c = cell(at / kGranule);
    --c.copies;
    note_write(c, actor);
  }
}

}  // namespace simt
