package fingerprint

import (
	"encoding/binary"
	"math/bits"
)

// Hash is 128 bits; as a sum it counts modulo 2^128.
type Hash struct{ Hi, Lo uint64 }

func (h Hash) plus(o Hash) Hash {
	lo, carry := bits.Add64(h.Lo, o.Lo, 0)
	hi, _ := bits.Add64(h.Hi, o.Hi, carry)
	return Hash{hi, lo}
}

func (h Hash) less(o Hash) bool { return h.Hi < o.Hi || h.Hi == o.Hi && h.Lo < o.Lo }

func (h Hash) appendTo(dst []byte) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(dst, h.Hi), h.Lo)
}

func hashAt(b []byte) Hash {
	return Hash{binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])}
}

// element is a number modulo the prime 2^127-1, always below it. The sums of the invertible table are elements, because
// every count below the prime can be divided out there: a row that is present c times more peels by the inverse of c.
type element struct{ hi, lo uint64 }

const (
	primeHi = 1<<63 - 1
	primeLo = 1<<64 - 1
)

// reduce folds 128 bits into an element.
func reduce(hi, lo uint64) element {
	lo, carry := bits.Add64(lo, hi>>63, 0)
	hi = hi&primeHi + carry
	if hi>>63 != 0 { // carried to exactly 2^127, which is 1
		hi, lo = 0, lo+1
	}
	if hi == primeHi && lo == primeLo {
		return element{}
	}
	return element{hi, lo}
}

func (a element) plus(b element) element {
	lo, carry := bits.Add64(a.lo, b.lo, 0)
	hi, _ := bits.Add64(a.hi, b.hi, carry)
	return reduce(hi, lo)
}

func (a element) negated() element {
	if a == (element{}) {
		return a
	}
	lo, borrow := bits.Sub64(primeLo, a.lo, 0)
	hi, _ := bits.Sub64(primeHi, a.hi, borrow)
	return element{hi, lo}
}

func (a element) minus(b element) element { return a.plus(b.negated()) }

// times multiplies: the 254-bit product is folded at bit 127.
func (a element) times(b element) element {
	h0, l0 := bits.Mul64(a.lo, b.lo)
	h1, l1 := bits.Mul64(a.lo, b.hi)
	h2, l2 := bits.Mul64(a.hi, b.lo)
	h3, l3 := bits.Mul64(a.hi, b.hi)
	w1, c := bits.Add64(h0, l1, 0)
	w2, c2 := bits.Add64(h1, l3, c)
	h3 += c2
	w1, c = bits.Add64(w1, l2, 0)
	w2, c = bits.Add64(w2, h2, c)
	w3 := h3 + c
	low := reduce(w1&primeHi, l0)
	high := reduce(w3<<1|w2>>63, w2<<1|w1>>63)
	return low.plus(high)
}

// small makes an element of a count.
func small(n int64) element {
	if n < 0 {
		return element{0, uint64(-n)}.negated()
	}
	return element{0, uint64(n)}
}

// inverse is a^(p-2); the inverse of a number by Fermat's theorem.
func (a element) inverse() element {
	result, square := element{0, 1}, a
	for i := range 127 { // p-2 = 2^127-3: all bits set but the second
		if i != 1 {
			result = result.times(square)
		}
		square = square.times(square)
	}
	return result
}
