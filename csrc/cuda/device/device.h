// All that a kernel may know of the hardware.
#pragma once

#include "cuda/device/element.h"
#include "cuda/device/matrix.h"
#include "cuda/device/memory.h"
#include "cuda/device/platform.h"
#include "cuda/device/thread.h"
