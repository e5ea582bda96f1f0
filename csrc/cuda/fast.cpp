// From a plan to the launchers of the kernel families.
#include "cuda/heuristics.h"
#include "cuda/launch.h"
#include "cuda/nchw_launch.h"
#include "cuda/nchw_wgrad_launch.h"
#include "cuda/rowstream_launch.h"
#include "cuda/tiled_launch.h"
#include "cuda/tiled_wgrad_launch.h"
#include "cuda/wgrad_launch.h"

namespace grouped_conv::cuda {

int launch_fast(const PassArgs& args, const FastPlan& plan, void* workspace, void* stream) {
  if (plan.family == Family::kTiled) return launch_tiled(args, plan.tiled, workspace, stream);
  if (plan.family == Family::kTiledWgrad) {
    const bool channels_last = args.w.strides[1] == 1;
    return launch_tiled_wgrad(
        make_tiled_wgrad_args(args.problem, plan.tiled_wgrad, args.x.data, args.y.data, workspace,
                              args.w.data, channels_last),
        stream);
  }
  const bool planar = plan.family == Family::kNchw;
  if (args.pass == Pass::kWgrad) {
    const bool channels_last = args.w.strides[1] == 1;
    if (planar) {
      return launch_nchw_wgrad(args.problem, args.dtype, plan.nchw_wgrad, args.x.data, args.y.data,
                               workspace, args.w.data, channels_last, stream);
    }
    return launch_wgrad(args.problem, args.dtype, plan.wgrad, args.x.data, args.y.data, workspace,
                        args.w.data, channels_last, stream);
  }
  if (planar) return launch_nchw(args, plan.nchw, stream);
  return launch_rowstream(args, plan.rowstream, workspace, stream);
}

}  // namespace grouped_conv::cuda
