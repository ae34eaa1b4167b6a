// float8_e4m3fn as bfloat16 without a conversion: its bits in bfloat16's places mean 2^-120 times the value. The other
// operand is given 2^60 of that, the sums the rest.
#pragma once

#define LIFT 1152921504606846976.0f  // 2^60

// Two float8 in the high bytes of the halves of a word.
__device__ __forceinline__ u32 widen(u32 high) { return (high & 0x80008000u) | ((high >> 4) & 0x07f007f0u); }
__device__ __forceinline__ u32 widen_low(u32 word) { return widen(__byte_perm(word, 0, 0x1404)); }   // elements 0, 1
__device__ __forceinline__ u32 widen_high(u32 word) { return widen(__byte_perm(word, 0, 0x3424)); }  // elements 2, 3
