// The shared memory of one block, with what is known of each two bytes: who wrote them, who read
// them, and since which barrier; whether they were ever written; whether an asynchronous copy into
// them is under way.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "simt/report.h"

namespace simt {

class SharedShadow {
 public:
  struct Actor {
    int thread;
    uint32_t warp_syncs;  // how many sync_warp its warp has passed
    int site;
  };
  // What happened, and the place of the other access if there is one (-1: none).
  struct Problem {
    Fault fault;
    std::string message;
    int other_site;
  };

  // For a block that starts: nothing is initialised. Without `detect` only addresses are checked.
  void begin_block(int bytes, bool detect);
  void barrier() { ++epoch_; }

  std::optional<Problem> read(void* value, uint32_t address, int bytes, const Actor& actor);
  // 16 bytes that ldmatrix deals out: threads[i] gets the i-th two bytes.
  std::optional<Problem> read_row(uint16_t (&row)[8], uint32_t address, const int (&threads)[8],
                                  const Actor& actor);
  std::optional<Problem> write(uint32_t address, const void* value, int bytes, const Actor& actor);
  // An asynchronous write of 16 bytes: they are in doubt from begin_copy to end_copy.
  std::optional<Problem> begin_copy(uint32_t address, const Actor& actor);
  void end_copy(uint32_t address, const void* value, const Actor& actor);

 private:
  static constexpr int kGranule = 2;

  struct Cell {
    uint32_t block;  // the fields below are of this block
    uint32_t write_epoch, read_epoch;
    uint32_t write_syncs, read_syncs;  // warp_syncs of the last writer and the last reader
    uint32_t reader_warps;             // since read_epoch began
    uint16_t write_site, read_site;
    int16_t writer, reader;
    bool written, several_readers;  // several threads of the last reader's warp at read_syncs
    uint8_t copies;                 // under way
  };

  std::optional<Problem> check_range(uint32_t address, int bytes) const;
  Cell& cell(uint32_t index);
  std::optional<Problem> read_cell(uint32_t address, const Actor& actor);
  std::optional<Problem> check_write(const Cell& cell, uint32_t address, const Actor& actor) const;
  void note_write(Cell& cell, const Actor& actor) const;

  std::vector<std::byte> data_;
  std::vector<Cell> cells_;
  int bytes_ = 0;
  bool detect_ = true;
  uint32_t block_ = 0;
  uint32_t epoch_ = 0;
};

}  // namespace simt
