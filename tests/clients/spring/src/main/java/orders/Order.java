package orders;

/** An order; a `kind` of "poison" is one that no listener can handle. */
public record Order(int number, String kind) {}
