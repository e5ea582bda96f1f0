// Counts of memory traffic against figures that can be worked out by hand.
#include <algorithm>

#include "cuda/device/device.h"
#include "simt/check.h"
#include "simt/simt.h"

namespace {

using namespace grouped_conv::cuda::device;
using simt::Buffer;
using simt::check;
using simt::Leaf;

constexpr int kShared = 64 * 1024;

// One access of 4 bytes and one of 16 by each lane, `stride` bytes apart.
GC_GLOBAL(32, 1) strided(int stride4, int stride16) {
  GC_DYNAMIC_SHARED(memory);
  const uint32_t base = shared_address(memory);
  store_shared_4(base + uint32_t(lane_index() * stride4), 0);
  store_shared_16(base + uint32_t(lane_index() * stride16), Bytes16{});
}

void check_conflicts() {
  struct {
    int stride4, passes4, stride16, passes16;
  } const cases[] = {
      {4, 1, 16, 4},       // in a row
      {8, 2, 32, 8},       // every second word; quarters of 8 lanes over 256 bytes
      {128, 32, 128, 32},  // one bank
      {132, 1, 144, 4},    // one word or one row further each time
      {0, 1, 0, 4},        // one word for all
      {12, 1, 48, 4},      // odd strides
  };
  for (const auto& c : cases) {
    const simt::Report report = simt::launch({{1}, 32, kShared}, {.detect = false},
                                             [&] { strided(c.stride4, c.stride16); });
    const auto& sites = report.counts.sites;
    const std::string name =
        "strides " + std::to_string(c.stride4) + ", " + std::to_string(c.stride16);
    check(report.clean() && sites.size() == 2, name + report.text());
    check(sites[0].wavefronts == c.passes4 && sites[0].conflicts == c.passes4 - 1, name);
    check(sites[1].wavefronts == c.passes16 && sites[1].conflicts == c.passes16 - 4, name);
  }
}

// Rows of ldmatrix `pitch` bytes apart.
GC_GLOBAL(32, 1) rows(int pitch) {
  GC_DYNAMIC_SHARED(memory);
  uint32_t r[4];
  ldmatrix_x4(r, shared_address(memory) + uint32_t(lane_index() * pitch));
}

void check_ldmatrix() {
  for (const auto& [pitch, passes] : {std::pair{16, 4}, {128, 32}, {144, 4}, {64, 16}}) {
    const simt::Report report =
        simt::launch({{1}, 32, kShared}, {.detect = false}, [&, pitch = pitch] { rows(pitch); });
    const simt::SiteCounts& site = report.counts.sites.at(0);
    check(site.leaf == Leaf::kLdmatrix && site.warp_instructions == 1 && site.bytes == 512 &&
              site.wavefronts == passes && site.conflicts == passes - 4,
          "ldmatrix, pitch " + std::to_string(pitch));
  }
}

// Each lane loads 4 bytes `stride` apart, twice; the second time only where `second` says so.
GC_GLOBAL(64, 1) gather(const unsigned char* x, uint32_t* y, int stride, uint32_t second) {
  uint32_t sum = 0;
  for (int turn = 0; turn < 2; ++turn) {
    const bool active = turn == 0 || (second >> lane_index() & 1);
    sum += load_global_4(x + thread_index() * stride, active);
  }
  store_global_4(y + thread_index(), sum);
}

void check_sectors() {
  struct {
    int stride;
    uint32_t second;
    int64_t sectors, bytes, dram;
  } const cases[] = {
      {4, ~0u, 2 * 2 * 4, 512, 8},         // two warps, two turns, 128 bytes each
      {4, 0, 2 * 4, 256, 8},               // nobody in the second turn
      {4, 0x000000ffu, 2 * 5, 320, 8},     // eight lanes in the second turn: one sector
      {32, ~0u, 2 * 2 * 32, 512, 64},      // a sector for each lane
      {0, ~0u, 2 * 2, 512, 1},             // one for all
      {64, 0x80000001u, 2 * 34, 272, 64},  // first and last lane in the second turn
  };
  for (const auto& c : cases) {
    Buffer x("x", 8192, Buffer::Use::kInput), y("y", 256, Buffer::Use::kOutput);
    const simt::Report report = simt::launch({{1}, 64, 0}, {}, [&] {
      gather(x.device<unsigned char>(), y.device<uint32_t>(), c.stride, c.second);
    });
    const simt::SiteCounts& loads = report.counts.sites.at(0);
    const std::string name = "gather, stride " + std::to_string(c.stride);
    check(report.clean(), name + report.text());
    check(loads.leaf == Leaf::kLoadGlobal && loads.warp_instructions == 4 && loads.ragged == 0,
          name);
    check(loads.sectors == c.sectors && loads.bytes == c.bytes, name);
    const auto& buffers = report.counts.buffers;
    check(buffers.size() == 2 && buffers[0].name == "x" && buffers[1].name == "y", name);
    check(buffers[0].sectors_read == c.dram && buffers[0].sectors_written == 0, name);
    check(buffers[1].sectors_read == 0 && buffers[1].sectors_written == 8, name);
    check(report.counts.warp_instructions(Leaf::kStoreGlobal) == 2, name);
  }
}

// A branch around the access instead of a predicate: what belongs together cannot be told.
GC_GLOBAL(32, 1) branching(const uint32_t* x, uint32_t* y) {
  uint32_t sum = 0;
  for (int turn = 0; turn < 3; ++turn) {
    if (turn <= lane_index()) sum += load_global_4(x + turn);
    if (lane_index() == turn) sum += load_global_4(x + 8);
  }
  store_global_4(y + lane_index(), sum);
}

void check_ragged() {
  Buffer x("x", 64, Buffer::Use::kInput), y("y", 128, Buffer::Use::kOutput);
  const simt::Report report = simt::launch(
      {{1}, 32, 0}, {}, [&] { branching(x.device<uint32_t>(), y.device<uint32_t>()); });
  const auto& sites = report.counts.sites;
  check(report.clean() && sites.size() == 3, "branching: " + report.text());
  // Lane 0 passes the first load once, lane 1 twice. No lane passes the second more than once.
  check(sites[0].ragged == 3 && sites[1].ragged == 0 && sites[2].ragged == 0, "ragged");
}

// Two stages of 512 bytes are under way while a third is awaited.
GC_GLOBAL(32, 1) pipeline(const uint32_t* x, uint32_t* y) {
  GC_DYNAMIC_SHARED(memory);
  const uint32_t row = shared_address(memory) + uint32_t(16 * lane_index());
  for (int stage = 0; stage < 3; ++stage) {
    cp_async_16(row + uint32_t(512 * stage), x + 4 * lane_index(), true);
    cp_async_commit();
  }
  cp_async_wait<2>();
  store_global_4(y + lane_index(), load_shared_4(row));
  cp_async_wait<0>();
}

void check_pipeline() {
  Buffer x("x", 512, Buffer::Use::kInput), y("y", 128, Buffer::Use::kOutput);
  const simt::Report report = simt::launch(
      {{1}, 32, 1536}, {}, [&] { pipeline(x.device<uint32_t>(), y.device<uint32_t>()); });
  const simt::Counts& counts = report.counts;
  check(report.clean(), "pipeline: " + report.text());
  check(counts.warp_instructions(Leaf::kCopyAsync) == 3, "copies");
  check(counts.wavefronts(Leaf::kCopyAsync) == 12, "wavefronts of copies");
  check(counts.wavefronts(Leaf::kLoadShared) == 4 && counts.conflicts() == 3, "of the load");
  check(counts.sectors() == 3 * 16 + 4 && counts.buffers[0].sectors_read == 16, "sectors");
  // Three stages before the first wait, two before the second.
  check(counts.bytes_in_flight == 2.5 * 512, "in flight");
}

}  // namespace

int main() {
  check_conflicts();
  check_ldmatrix();
  check_sectors();
  check_ragged();
  check_pipeline();
  std::printf("%d failures\n", simt::failures);
  return simt::failures != 0;
}
