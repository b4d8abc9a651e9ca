// The cases of a switch over a tile's height, which is a constant of the compiler in each.
#define EDGEC_EACH_OF_6(CASE) CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#define EDGEC_EACH_OF_12(CASE) EDGEC_EACH_OF_6(CASE) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
