// The elementwise likelihoods: each a functor of its form's name that gives -log p(x | theta) in
// nats and, where asked, its derivative in each parameter. CPU and CUDA compile the same functors.
//
// A functor has kParams, is made from the form's numbers, and is in the list at the head of its
// family's file, which has the family's name in every room.
#pragma once

#include "likelihoods_bernoulli.h"
#include "likelihoods_counts.h"
#include "likelihoods_location.h"
#include "likelihoods_pixels.h"

#define VAEFAST_LIKELIHOODS(X)     \
  VAEFAST_BERNOULLI_LIKELIHOODS(X) \
  VAEFAST_LOCATION_LIKELIHOODS(X)  \
  VAEFAST_COUNTS_LIKELIHOODS(X)    \
  VAEFAST_PIXELS_LIKELIHOODS(X)
